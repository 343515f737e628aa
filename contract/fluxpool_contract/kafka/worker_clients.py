"""Client ids of workers: how the members of a consumer group are told apart, and found in the brokers' logs."""

from typing import Final

_PREFIX: Final = "fluxpool-worker-"


def worker_client_id(worker: str) -> str:
    """The client id of a worker's consumers, the same on all its lanes."""
    return _PREFIX + worker


def worker_of_client(client_id: str) -> str:
    """The worker's name, as ledgers and results have it; any other client's id as it is."""
    return client_id.removeprefix(_PREFIX)
