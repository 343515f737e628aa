"""CPU time of test files, with the processes that they start."""

import os
import subprocess
import sys

import psutil
import pytest

from kit.cpu_durations import cpu_seconds

pytestmark = pytest.mark.on_change

BUSY = "import time\nwhile time.process_time() < 0.5: pass"


def test_the_time_of_descendants_counts_while_they_run_and_afterwards() -> None:
    before = cpu_seconds(psutil.Process())
    subprocess.run([sys.executable, "-c", BUSY], check=True)
    after_one = cpu_seconds(psutil.Process())
    assert after_one - before >= 0.4  # the kernel counts in ticks
    waits = f"import sys\n{BUSY}\nprint(flush=True)\nsys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", waits], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(os.environ)
    ) as running:
        assert running.stdout is not None
        running.stdout.readline()
        assert cpu_seconds(psutil.Process()) - after_one >= 0.4
