"""`python -m kit.programs.console_script`: the `fluxpool` program, for processes that have imported it already."""

from fluxpool_cli.main import main

if __name__ == "__main__":
    main()
