"""The parameters of a search, as lists and forms take them."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from fluxpool_gateway.search.content import MAX_SEARCH_CHARACTERS, ContentFilter, parse_size, words_of

MAX_SEED = 2**32 - 1


def _check_size(text: str) -> str:
    return str(parse_size(text))


class SearchFields(BaseModel):
    """What tasks are searched by."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    prompt: Annotated[str, Field(max_length=MAX_SEARCH_CHARACTERS)] | None = None
    """Only tasks whose prompt contains each of these words, or parts of words, without regard to case."""
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    """Only tasks with this seed: asked for, or of an image."""
    size: Annotated[str, Field(max_length=20), AfterValidator(_check_size)] | None = None
    """Only tasks with images of this size, such as 1024x768."""
    model: Annotated[str, Field(max_length=MAX_SEARCH_CHARACTERS)] | None = None
    """Only tasks that were done by a model with this in its name."""
    preset: Annotated[str, Field(max_length=MAX_SEARCH_CHARACTERS)] | None = None
    """Only tasks with this preset."""
    min_score: Annotated[int, Field(ge=1, le=5)] | None = None
    """Only tasks with an image that somebody gave at least this score."""
    starred: bool = False
    """Only tasks with a star."""

    @property
    def content(self) -> ContentFilter:
        """What a task has to contain."""
        return ContentFilter(
            words=words_of(self.prompt or ""),
            seed=self.seed,
            size=None if self.size is None else parse_size(self.size),
            model=(self.model or "").strip(),
            preset=self.preset,
        )
