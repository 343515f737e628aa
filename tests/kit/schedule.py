"""Which tests share a process under `pytest -n 2`: those of a file, and all on the control plane."""

from typing import Final

from xdist.scheduler import LoadScopeScheduling

ONE_PROCESS: Final = "tests/cluster/"
"""A control plane of its own for each process would cost more than the other gains."""


class FileScheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist is not typed
    """Hands out whole files, those with the most tests first: their fixtures are made once."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return ONE_PROCESS if file.startswith(ONE_PROCESS) else file
