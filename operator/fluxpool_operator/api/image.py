"""`spec.image`: what the image files say of themselves."""

from fluxpool_contract.messages import EmbedParameters
from fluxpool_operator.api.schema import ApiModel
from fluxpool_operator.api.secrets import SigningSecretRef


class ProvenanceSpec(ApiModel):
    """Signature of the image files."""

    signing_secret_ref: SigningSecretRef | None = None
    """Secret with the ECDSA P-256 key that files are signed with (C2PA). Absent, files are not signed."""


class ImageSpec(ApiModel):
    """Contents of the image files beside the pixels. Every file says in XMP that a model made it."""

    embed_parameters: EmbedParameters = EmbedParameters.NO_PROMPT
    """Parameters of the task that a file contains, for everyone who gets it: all, noPrompt or none. A task may ask for
    less, not for more."""
    provenance: ProvenanceSpec = ProvenanceSpec()
    """Signature of the image files."""
