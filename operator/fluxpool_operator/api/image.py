"""`spec.image`: metadata and signature of the image files, and the input images of tasks."""

from typing import Annotated

from pydantic import Field

from fluxpool_contract.messages import MAX_STEPS, EmbedParameters
from fluxpool_contract.settings import INPUT_PREFIX_PATTERN, MAX_INPUT_BYTES, ImageSettings
from fluxpool_operator.api.schema import ApiModel, Matching
from fluxpool_operator.api.secrets import SigningSecretRef


class ProvenanceSpec(ApiModel):
    """Signature of the image files."""

    signing_secret_ref: SigningSecretRef | None = None
    """Secret with the ECDSA P-256 key that files are signed with (C2PA). Absent, files are not signed."""


class ImageSpec(ApiModel):
    """Metadata of the image files, each of which says in XMP that a model made it, and input images of tasks."""

    embed_parameters: EmbedParameters = EmbedParameters.NO_PROMPT
    """Task parameters that the files contain, readable by every recipient: all, noPrompt or none. A task can request
    less, not more."""
    provenance: ProvenanceSpec = ProvenanceSpec()
    """Signature of the image files."""
    input_prefix: Annotated[
        str,
        Field(max_length=256),
        Matching(
            INPUT_PREFIX_PATTERN,
            "inputPrefix: must be _inputs/ or a folder below it with a slash, such as _inputs/pool-a/",
        ),
    ] = ImageSettings.model_fields["input_prefix"].default
    """Folder of the storage with the input images of tasks (image-to-image): `_inputs/` or a folder below it, with a
    subfolder for each tenant, such as `_inputs/default/`. Workers read no other object for a task."""
    input_max_bytes: Annotated[int, Field(ge=1, le=MAX_INPUT_BYTES)] = ImageSettings.model_fields[
        "input_max_bytes"
    ].default
    """Maximum size of an input image, as a file in bytes."""
    preview_every_steps: Annotated[int, Field(ge=0, le=MAX_STEPS)] = ImageSettings.model_fields[
        "preview_every_steps"
    ].default
    """Denoising steps between two previews of a task that asks for previews; 0: none for any task."""
