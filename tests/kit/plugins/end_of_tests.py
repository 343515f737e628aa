"""A pytest plugin that ends a process whose test does not end after its time limit.

pytest-timeout raises once, and interrupts nothing that runs afterwards: a fixture whose teardown waits for ever would
hold up the whole run. The process then ends with the stack of every thread; with several processes, the run continues
in another one and reports the test as failed (`kit.plugins.schedule`).
"""

import faulthandler
import os
import sys
from collections.abc import Generator
from typing import Final

import pytest

GRACE_SECONDS: Final = 120.0
"""For what follows the limit of a test: the last test of a process also ends brokers and the control plane."""


class EndOfTests:
    """Limits each phase of a test that has a limit to that limit and a grace period."""

    def __init__(self, *, grace_seconds: float) -> None:
        """Create it before output is captured, because it writes to the run's own error stream."""
        assert sys.__stderr__ is not None
        self._stderr = os.dup(sys.__stderr__.fileno())
        self._grace_seconds = grace_seconds

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, None, None]:
        """Limit the set-up."""
        yield from self._limited(item)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, None, None]:
        """Limit the test."""
        yield from self._limited(item)

    # pytest cancels faulthandler's one timer when a test fails, so each phase sets it again.
    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, None, None]:
        """Limit the teardown, also that of fixtures which other tests have used."""
        yield from self._limited(item)

    def _limited(self, item: pytest.Item) -> Generator[None, None, None]:
        marker = item.get_closest_marker("timeout")
        if marker is None or item.config.getoption("usepdb"):
            return (yield)
        seconds = marker.args[0] + self._grace_seconds
        faulthandler.dump_traceback_later(seconds, file=self._stderr, exit=True)
        try:
            return (yield)
        finally:
            faulthandler.cancel_dump_traceback_later()
