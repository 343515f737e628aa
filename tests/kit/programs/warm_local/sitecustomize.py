"""Lets fork servers start programs for a process that chooses their commands itself; see `kit.programs.warm_parts`.

Python runs this first when it is on the PYTHONPATH. A process that would become one of these programs stands for a
forked one instead; all other processes are unchanged.
"""

import os
import sys

if sys.orig_argv[1:2] == ["-m"]:
    module = sys.orig_argv[2]
    warm = os.environ.get(f"TEST_WARM_{module.replace('.', '_')}")
    if warm:
        command = [*warm.split(","), module, *sys.orig_argv[3:]]
        os.execv(command[0], command)  # noqa: S606
