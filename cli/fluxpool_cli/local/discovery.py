"""Which gateway the commands mean when nobody names one: that of the stack which runs in the current folder."""

from pathlib import Path

from fluxpool_cli.local.data_dir import DEFAULT_NAME, DataDir
from fluxpool_cli.local.state_file import Phase, StackState
from fluxpool_cli.submit.gateway_client import DEFAULT_URL


def running_stack(data_dir: Path | None = None) -> StackState | None:
    """The stack that is ready in a data folder, by default `.fluxpool` here; null when none is."""
    state = StackState.load(DataDir.at(data_dir or Path(DEFAULT_NAME)).state)
    if state is None or state.phase is not Phase.READY or not state.supervisor.is_alive():
        return None
    return state


def why_workers_cannot_start(data_dir: Path | None = None) -> str | None:
    """What every worker of the running stack fails with; null while they work, or when no stack runs."""
    state = running_stack(data_dir)
    return None if state is None else state.workers_problem


def default_gateway_url(data_dir: Path | None = None) -> str:
    """The address of the local stack's gateway, else where a gateway listens by default."""
    state = running_stack(data_dir)
    return state.gateway_url if state is not None and state.gateway_url else DEFAULT_URL
