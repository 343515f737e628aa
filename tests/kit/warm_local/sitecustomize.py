"""Lets a fork server start the engines of a local stack: Python runs this first when it is on the PYTHONPATH.

A stack chooses the command of its engines itself. A process that would become an engine stands for a forked one
instead; all other processes are unchanged. `TEST_WARM_ENGINE` has the command of `kit.warm_start.warm_engine`.
"""

import os
import sys

if sys.orig_argv[1:3] == ["-m", "fluxpool_worker.engine"]:
    warm_engine = os.environ["TEST_WARM_ENGINE"].split(",")
    os.execv(warm_engine[0], [*warm_engine, *sys.orig_argv[3:]])  # noqa: S606
