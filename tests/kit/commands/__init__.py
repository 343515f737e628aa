"""The `fluxpool` command, as a process or in that of a test, and what it writes."""
