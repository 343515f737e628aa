"""The detached supervisor: `python -m fluxpool_cli.local.daemon OPTIONS`, as `local up --detach` starts it.

Its standard error is the supervisor's log.
"""

import asyncio
import sys

from fluxpool_cli.local.data_dir import DataDirError
from fluxpool_cli.local.options import StackOptions
from fluxpool_cli.local.stack import LocalStack, StackError, supervise
from fluxpool_cli.terminal import say, say_paragraph
from fluxpool_transport.process import configure_logging, run_program


def main(arguments: list[str]) -> int:
    """Run the stack of these options (JSON) until SIGTERM."""
    configure_logging(service="local", level="warning")
    options = StackOptions.model_validate_json(arguments[0])
    try:
        asyncio.run(supervise(options, _forever, report=say))
    except (StackError, DataDirError, OSError) as error:
        say_paragraph(str(error))
        return 1
    except KeyboardInterrupt:
        return 0
    return 0


async def _forever(_stack: LocalStack) -> None:
    await asyncio.Event().wait()


if __name__ == "__main__":
    run_program(lambda: main(sys.argv[1:]))
