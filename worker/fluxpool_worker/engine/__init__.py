"""The engine: the only place that imports torch and diffusers, run in a child process of the agent.

This face needs neither: it tells what model a checkpoint folder holds.
"""

from fluxpool_worker.engine.checkpoint.families import Family, ForeignModelError, check_pipeline, family_of

__all__ = ["Family", "ForeignModelError", "check_pipeline", "family_of"]
