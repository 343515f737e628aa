"""`python -m kit.programs.aborting_end MODULE ARGUMENTS`: a program in a process that aborts when Python finalizes it.

So a native library does whose thread is unwound at that moment.
"""

import atexit
import os
import sys

from kit.programs.fork_server import run

if __name__ == "__main__":
    atexit.register(os.abort)
    run(*sys.argv[1:])
