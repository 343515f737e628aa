"""Distribution of tests under `pytest -n`: one process for a file, and for most files on the control plane."""

from typing import Any, Final

from xdist.scheduler import LoadScopeScheduling

TOGETHER: Final = ("tests/cluster/test_operator_", "tests/cluster/test_demo_", "tests/cluster/")
"""Files with these prefixes share a process and its control plane. All together would take longer than all other tests;
the demo starts its own control plane."""
TEST_SECONDS: Final = {
    "tests/cluster/test_operator_": 40.0,
    "tests/cluster/test_demo_": 60.0,
    "tests/cluster/": 2.0,
    "tests/chaos/": 15.0,
    "tests/kafka/test_local_mode.py": 22.0,
    "tests/kafka/": 6.0,
    "tests/chart/test_images.py": 40.0,
    "tests/chart/": 3.0,
    "tests/web/": 12.0,
    "tests/strangers/": 0.3,
    "tests/unit/gateway/test_gateway_tenants_apart.py": 40.0,
    "tests/unit/gateway/": 0.3,
    "tests/unit/worker/test_engine_process.py": 1.5,
    "tests/unit/worker/test_engine_": 0.5,
    "tests/unit/project/": 0.3,
}
"""Approximate time of a test by the first prefix that its file has; all others are short. `--timeline` shows the real
times: a file that is estimated too low begins late, and the other processes end before it."""


class FileScheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist is not typed
    """Assigns whole files, the longest first: fixtures are created once, and processes end together."""

    def remove_node(self, node: Any) -> str | None:
        """Return the test that ended its process: it has failed and does not run again; later ones do.

        xdist would repeat it, and also put finished files back, for which the next process never reports anything: the
        run would hang.
        """
        files = self.assigned_work[node]
        crashed = next(((tests, test) for tests in files.values() for test, done in tests.items() if not done), None)
        if crashed:
            tests, test = crashed
            tests[test] = True
        self.assigned_work[node] = {file: tests for file, tests in files.items() if not all(tests.values())}
        super().remove_node(node)
        return crashed and crashed[1]

    def _reschedule(self, node: Any) -> None:
        # A process begins a test only when it knows the next one, or that there is none.
        super()._reschedule(node)
        while not node.shutting_down and self._pending_of(self.assigned_work[node]) < 2:
            super()._reschedule(node)

    def _assign_work_unit(self, node: Any) -> None:
        longest = max(self.workqueue, key=lambda file: _seconds(file, self.workqueue[file]))
        self.workqueue.move_to_end(longest, last=False)
        super()._assign_work_unit(node)

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return next((together for together in TOGETHER if file.startswith(together)), file)


def _seconds(file: str, tests: dict[str, bool]) -> float:
    """Estimated time of the rest of a file."""
    of_a_test = next((seconds for folder, seconds in TEST_SECONDS.items() if file.startswith(folder)), 0.1)
    return of_a_test * list(tests.values()).count(False)
