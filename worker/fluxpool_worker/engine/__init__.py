"""The engine: the only place that imports torch and diffusers, run in a child process of the agent.

This face needs neither: it tells what model a checkpoint folder holds, and whether its weights can be loaded.
"""

from fluxpool_worker.engine.checkpoint.families import ForeignModelError, check_pipeline, family_of
from fluxpool_worker.engine.checkpoint.weight_files import WEIGHTED_PARTS, weight_problems

__all__ = ["WEIGHTED_PARTS", "ForeignModelError", "check_pipeline", "family_of", "weight_problems"]
