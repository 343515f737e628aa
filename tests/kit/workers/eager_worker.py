"""A worker whose clients ask for changes of topics every few seconds, for tests that would wait a minute for them.

All else is `python -m fluxpool_worker`.
"""

from fluxpool_transport.kafka import clients
from fluxpool_transport.process import run_program
from fluxpool_worker.__main__ import main

if __name__ == "__main__":
    clients.METADATA_MAX_AGE_MS = 3_000
    run_program(main)
