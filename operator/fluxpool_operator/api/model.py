"""`spec.model`: the checkpoint and the cache of its files."""

from typing import Annotated, ClassVar

from pydantic import Field

from fluxpool_contract.messages import Quality
from fluxpool_contract.settings import DType, ModelDevice, ModelOffload, ModelSettings
from fluxpool_operator.api.kubernetes_types import PullPolicy
from fluxpool_operator.api.schema import SET, ApiModel, Matching, ObjectName, Quantity, Rule
from fluxpool_operator.api.secrets import TokenSecretRef


class EmptyDirCache(ApiModel):
    """emptyDir volume with the lifetime of the pod: every new pod downloads the checkpoint."""

    size_limit: Quantity | None = None
    """Total amount of local storage required for this volume."""


class PersistentVolumeClaimCache(ApiModel):
    """PersistentVolumeClaim mounted by all pods of the pool."""

    claim_name: ObjectName
    """Name of a PersistentVolumeClaim in the pool's namespace with access mode ReadWriteMany, or ReadOnlyMany with
    readOnly."""
    read_only: bool = False
    """Mount the volume read-only and never download: it already holds the checkpoint."""


class HostPathCache(ApiModel):
    """Directory of the node. The operator must allow it; the restricted Pod Security Standard forbids it."""

    path: Annotated[str, Field(max_length=1024), Matching(r"/[^:]+", "path: must be absolute, such as /var/lib/models")]
    """Path of the directory on the node, writable for worker.runAsUser."""
    read_only: bool = False
    """Mount the volume read-only and never download: it already holds the checkpoint."""


class ImageCache(ApiModel):
    """Image volume with the checkpoint; always read-only."""

    reference: Annotated[str, Field(min_length=1, max_length=1024)]
    """Image reference, preferably by digest."""
    pull_policy: PullPolicy | None = None
    """Image pull policy. Defaults to Always for the tag latest, otherwise to IfNotPresent."""


class CacheSpec(ApiModel):
    """Volume of the checkpoint files, mounted at /models. Exactly one of its fields must be set."""

    empty_dir: EmptyDirCache | None = None
    """emptyDir volume with the lifetime of the pod."""
    persistent_volume_claim: PersistentVolumeClaimCache | None = None
    """PersistentVolumeClaim mounted by all pods of the pool."""
    host_path: HostPathCache | None = None
    """Directory of the node."""
    image: ImageCache | None = None
    """Image volume with the checkpoint."""

    rules: ClassVar = (
        Rule(
            "[has(self.emptyDir), has(self.persistentVolumeClaim), has(self.hostPath), has(self.image)]"
            ".filter(given, given).size() == 1",
            "cache: set exactly one of emptyDir, persistentVolumeClaim, hostPath and image",
        ),
    )

    @property
    def is_read_only(self) -> bool:
        """Whether nothing can be downloaded into it."""
        return self.image is not None or any(
            source.read_only for source in (self.persistent_volume_claim, self.host_path) if source is not None
        )


class QualitySpec(ApiModel):
    """Quality of the images: exact, or fast and lossy."""

    default: Quality = Quality.EXACT
    """Quality of tasks that name none."""
    allowed: Annotated[tuple[Quality, ...], Field(min_length=1, max_length=len(Quality), json_schema_extra=SET)] = (
        Quality.EXACT,
    )
    """Qualities that tasks may ask for; others are dead-lettered as invalid. fast needs a GPU with compute capability
    8.9 or later, and 9 GB of its memory for 8-bit weights."""

    rules: ClassVar = (
        Rule("self.default in self.allowed", "default: must be one of allowed; add it there or change it", ".default"),
    )


class ModelSpec(ApiModel):
    """Checkpoint that the workers load."""

    id: Annotated[str, Field(min_length=1, max_length=1024)] = ModelSettings.model_fields["id"].default
    """Model ID on the Hugging Face Hub, or path of a diffusers folder in the pod, such as /models/flux."""
    revision: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    """Branch, tag or commit hash of the Hub repository. A commit hash is recommended."""
    dtype: DType = DType.FLOAT16
    """Data type of the transformer."""
    encoder_dtype: DType = DType.BFLOAT16
    """Data type of the text encoders and the VAE. float16 overflows in T5."""
    device: ModelDevice = ModelDevice.AUTO
    """Device that runs the model. With cuda, a pod without a GPU fails instead of running on the CPU."""
    lora_folder: (
        Annotated[
            str, Field(max_length=1024), Matching(r"/[^:]+", "loraFolder: must be absolute, such as /models/loras")
        ]
        | None
    ) = None
    """Folder in the pod whose safetensors files are the LoRAs that tasks may name, such as /models/loras in the volume
    of the checkpoint files."""
    offload: ModelOffload = ModelOffload.AUTO
    """Whether weights are kept in pinned host memory and copied to the GPU block by block: slower, for GPUs with 24 GB.
    With auto, only if the GPU has no room for all weights."""
    quality: QualitySpec = QualitySpec()
    """Quality of the images."""
    token_secret_ref: TokenSecretRef | None = None
    """Secret with the Hugging Face token for gated models."""
    cache: CacheSpec = CacheSpec(empty_dir=EmptyDirCache())
    """Volume of the checkpoint files, mounted at /models."""
