"""Lets fork servers start engines and gateways of a local stack: Python runs this first when it is on the PYTHONPATH.

A stack chooses the commands of its parts itself. A process that would become one of these stands for a forked one
instead; all other processes are unchanged. `TEST_WARM_ENGINE` and `TEST_WARM_PROGRAM` have the commands of
`kit.warm_start`.
"""

import os
import sys

if sys.orig_argv[1:2] == ["-m"]:
    warm: list[str] = []
    match sys.orig_argv[2]:
        case "fluxpool_worker.engine":
            warm = os.environ["TEST_WARM_ENGINE"].split(",")
        case "fluxpool_gateway" | "fluxpool_gateway.projector" | "fluxpool_gateway.dispatcher":
            warm = [*os.environ["TEST_WARM_PROGRAM"].split(","), sys.orig_argv[2]]
    if warm:
        os.execv(warm[0], [*warm, *sys.orig_argv[3:]])  # noqa: S606
