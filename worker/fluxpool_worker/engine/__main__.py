"""`python -m fluxpool_worker.engine --socket-fd N --started-fd M --parent-pid P`: an engine with a real model."""

import gc
import os
from pathlib import Path

from fluxpool_worker.engine.generator import Generator, StartPhases
from fluxpool_worker.engine.kernel_cache import image_folder, seed_kernels, triton_folder
from fluxpool_worker.engine.logs import adopt_library_loggers, drop_known_messages
from fluxpool_worker.engine.process import run_engine
from fluxpool_worker.engine.protocol import EngineSpec


def load(spec: EngineSpec, phases: StartPhases) -> Generator:
    """Import torch and diffusers, which takes seconds, and load the model; raises `CheckpointError`."""
    if spec.offline or Path(spec.model).expanduser().exists():
        # Read once, when huggingface_hub is imported. A local folder needs no hub either.
        os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    drop_known_messages()
    seed_kernels(image_folder(), triton_folder())
    # Imports after the environment that they read. Weights are read while diffusers is imported.
    from fluxpool_worker.engine.checkpoint.weight_reader import start_reading  # noqa: PLC0415

    reader = start_reading(spec)
    # What the imports make stays, and the collector would visit all of it again and again: a seventh of their time.
    gc.disable()
    try:
        from fluxpool_worker.engine.generation import load_generator  # noqa: PLC0415
    finally:
        gc.enable()

    adopt_library_loggers()
    phases.end("imports")
    return load_generator(spec, phases=phases, reader=reader)


if __name__ == "__main__":
    run_engine(load)
