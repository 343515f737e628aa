"""Imports what an engine imports before it loads a model, in the way that it does."""

import os

from fluxpool_worker.engine.logs import drop_known_messages

# Read once, when huggingface_hub is imported.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
drop_known_messages()

import fluxpool_worker.engine.generation  # noqa: E402, F401 - after the environment that it reads
