"""`python -m kit.programs.warm_probe`: prints how a program sees itself, and ends as `ENDS` in its environment says."""

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

if __name__ == "__main__":
    state = {
        "module": [__name__, __spec__.name, __package__, sys.modules["__main__"].__file__],
        "arguments": sys.argv,
        "environment": dict(os.environ),
        "of_a_child": subprocess.run("echo $PROBE", shell=True, capture_output=True, text=True, check=True).stdout,  # noqa: S602
        "descriptors": [number for number in range(20) if Path(f"/proc/self/fd/{number}").exists()],
        "streams": [[stream.encoding, stream.errors, stream.line_buffering] for stream in (sys.stdout, sys.stderr)],
        "signals": {number: repr(signal.getsignal(number)) for number in range(1, 32)},
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "threads": threading.active_count(),
        "group": [os.getpgid(0), os.getsid(0)],
        "folder": str(Path.cwd()),
        "umask": os.umask(0),
        "limits": sys.getrecursionlimit(),
    }
    sys.stdout.write(f"{json.dumps(state)}\n")
    atexit.register(sys.stdout.write, "last words\n")
    match os.environ["ENDS"]:
        case "code":
            sys.exit(7)
        case "message":
            sys.exit("no such pool")
        case "raise":
            raise LookupError("no such pool")
        case "wait":
            sys.stdout.flush()
            signal.pause()
