"""Exit codes of a worker that other parts interpret."""

from typing import Final

EXIT_MODEL_LOAD_FAILED: Final = 4
"""The model cannot be loaded; the termination message says why. Another start would fail alike."""
