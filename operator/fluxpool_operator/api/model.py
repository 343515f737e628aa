"""`spec.model`: which checkpoint is served and where its files are kept."""

from typing import Annotated, ClassVar

from pydantic import Field

from fluxpool_contract.settings import DType, ModelDevice, ModelSettings
from fluxpool_operator.api.kubernetes_types import PullPolicy
from fluxpool_operator.api.schema import ApiModel, Matching, ObjectName, Quantity, Rule
from fluxpool_operator.api.secrets import TokenSecretRef


class EmptyDirCache(ApiModel):
    """A folder of the node that lives as long as the pod: every new pod downloads the checkpoint."""

    size_limit: Quantity | None = None
    """The most it may hold."""


class PersistentVolumeClaimCache(ApiModel):
    """A claim of the pool's namespace, mounted by every pod at once."""

    claim_name: ObjectName
    """Name of the claim; its volume must allow many readers."""
    read_only: bool = False
    """Never write to it nor ask the hub: the files are there."""


class HostPathCache(ApiModel):
    """A folder of the node that outlives pods. Only where the operator allows it; refused by restricted PodSecurity."""

    path: Annotated[str, Field(max_length=1024), Matching(r"/[^:]+", "path: must be absolute, such as /var/lib/models")]
    """The folder on the node, writable for the worker's user."""
    read_only: bool = False
    """Never write to it nor ask the hub: the files are there."""


class ImageCache(ApiModel):
    """An image whose files are mounted; always read-only."""

    reference: Annotated[str, Field(min_length=1, max_length=1024)]
    """The image, best by digest."""
    pull_policy: PullPolicy | None = None
    """When it is pulled; Kubernetes decides by the tag when absent."""


class CacheSpec(ApiModel):
    """Where checkpoint files are kept, mounted at /models. Exactly one kind."""

    empty_dir: EmptyDirCache | None = None
    """A folder that lives as long as the pod."""
    persistent_volume_claim: PersistentVolumeClaimCache | None = None
    """A claim of the pool's namespace."""
    host_path: HostPathCache | None = None
    """A folder of the node."""
    image: ImageCache | None = None
    """An image with the files."""

    rules: ClassVar = (
        Rule(
            "[has(self.emptyDir), has(self.persistentVolumeClaim), has(self.hostPath), has(self.image)]"
            ".filter(given, given).size() == 1",
            "cache: give exactly one of emptyDir, persistentVolumeClaim, hostPath and image",
        ),
    )

    @property
    def is_read_only(self) -> bool:
        """Whether nothing can be downloaded into it."""
        return self.image is not None or any(
            source.read_only for source in (self.persistent_volume_claim, self.host_path) if source is not None
        )


class ModelSpec(ApiModel):
    """The checkpoint that the pool serves."""

    id: Annotated[str, Field(min_length=1, max_length=1024)] = ModelSettings.model_fields["id"].default
    """A model id of the hub, or the path of a diffusers folder in the pod, such as /models/flux."""
    revision: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    """Branch, tag or, best, commit of the hub's repository."""
    dtype: DType = DType.FLOAT16
    """Number format of the transformer."""
    encoder_dtype: DType = DType.BFLOAT16
    """Number format of the text encoders and the VAE; float16 overflows in T5."""
    device: ModelDevice = ModelDevice.AUTO
    """Where it runs; cuda makes a pod without a GPU fail instead of being slow."""
    token_secret_ref: TokenSecretRef | None = None
    """The hub's token, for models whose access is gated."""
    cache: CacheSpec = CacheSpec(empty_dir=EmptyDirCache())
    """Where the files are kept."""
