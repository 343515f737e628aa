"""What tasks are searched by beyond their columns: their prompt, seed, size, model and preset."""

from fluxpool_gateway.search.content import ANYTHING, ContentFilter, words_of
from fluxpool_gateway.search.fields import SearchFields

__all__ = ["ANYTHING", "ContentFilter", "SearchFields", "words_of"]
