"""The assessment of a pool: its status, conditions and events, its state for gateways, and when they are worth a write.

Pure: values in, values out. `reconcile` writes, publishes and posts them. Must not decide how many workers there are.
"""

from fluxpool_operator.assessment.events import PoolEvent, events_of
from fluxpool_operator.assessment.state import pool_state, worth_publishing
from fluxpool_operator.assessment.status import assess, status_patch, worth_writing
from fluxpool_operator.assessment.view import PoolProblem, PoolView, SigningCertificate

__all__ = [
    "PoolEvent",
    "PoolProblem",
    "PoolView",
    "SigningCertificate",
    "assess",
    "events_of",
    "pool_state",
    "status_patch",
    "worth_publishing",
    "worth_writing",
]
