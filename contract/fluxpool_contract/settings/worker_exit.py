"""How a worker's process ends, as far as others go by it: the exit code that a pod shows."""

from typing import Final

EXIT_MODEL_LOAD_FAILED: Final = 4
"""The model cannot be loaded; the termination message says why. Another start would fail alike."""
