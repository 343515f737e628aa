"""`spec.image`: what the image files say of themselves."""

from fluxpool_contract.messages import EmbedParameters
from fluxpool_operator.api.schema import ApiModel


class ImageSpec(ApiModel):
    """Contents of the image files beside the pixels. Every file says in XMP that a model made it."""

    embed_parameters: EmbedParameters = EmbedParameters.NO_PROMPT
    """Parameters of the task that a file contains, for everyone who gets it: all, noPrompt or none. A task may ask for
    less, not for more."""
