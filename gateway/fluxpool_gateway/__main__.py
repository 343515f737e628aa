"""`python -m fluxpool_gateway`: the HTTP server, configured by `FLUXPOOL_*` variables, until SIGTERM.

What it accepts is projected into the task store by another program, `fluxpool_gateway.projector`.
"""

if __name__ == "__main__":
    # Not above: uvicorn's workers import this module as well, before they can answer their supervisor's first ping.
    from fluxpool_gateway.server import main
    from fluxpool_transport.process import run_program

    run_program(main)
