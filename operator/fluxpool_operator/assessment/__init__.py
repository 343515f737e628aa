"""The assessment of a pool: its status and conditions, when they are worth a write, and its events.

Pure: values in, values out. `reconcile` writes the status and posts the events. Must not decide how many workers there
are.
"""

from fluxpool_operator.assessment.events import PoolEvent, events_of
from fluxpool_operator.assessment.status import assess, status_patch, worth_writing
from fluxpool_operator.assessment.view import PoolProblem, PoolView, SigningCertificate

__all__ = [
    "PoolEvent",
    "PoolProblem",
    "PoolView",
    "SigningCertificate",
    "assess",
    "events_of",
    "status_patch",
    "worth_writing",
]
