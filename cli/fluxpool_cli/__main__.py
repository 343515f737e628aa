"""The console scripts, and `python -m fluxpool_cli`: what has to be so before the program is imported.

Its imports take some tenths of a second, in which Python would answer Ctrl-C with a traceback.
"""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # It ends the process as it ends one without a handler: a shell says 130.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def main() -> None:
    """Run `fluxpool`."""
    from fluxpool_cli.main import main as run  # noqa: PLC0415

    _answer_interrupts()
    run()


def kubectl_plugin() -> None:
    """Run `kubectl fluxpool`; kubectl finds the script `kubectl-fluxpool` on the PATH."""
    from fluxpool_cli.main import kubectl_plugin as run  # noqa: PLC0415

    _answer_interrupts()
    run()


def kubectl_completion() -> None:
    """Complete `kubectl fluxpool <TAB>`, as the script `kubectl_complete-fluxpool`."""
    from fluxpool_cli.cluster.completion import main as run  # noqa: PLC0415

    run()


def _answer_interrupts() -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if __name__ == "__main__":
    main()
