"""What is said of a pool: its status from what was seen and decided, when that is worth writing, and its events.

Pure: values in, values out. Must not know how a status is written, nor decide how many workers there are.
"""

from fluxpool_operator.assessment.narration import PoolEvent, narrate
from fluxpool_operator.assessment.status import assess
from fluxpool_operator.assessment.view import PoolProblem, PoolView
from fluxpool_operator.assessment.writing import status_patch, worth_writing

__all__ = [
    "PoolEvent",
    "PoolProblem",
    "PoolView",
    "assess",
    "narrate",
    "status_patch",
    "worth_writing",
]
