"""The simple way to accept a request, for comparison: a sync handler, one `send` and one `flush` for each.

Like a short script with FastAPI and kafka-python. Run by `accept.py` under uvicorn.
"""

import os
import warnings
from typing import Any

from fastapi import FastAPI

from fluxpool_contract.messages.derived import new_request_id
from fluxpool_gateway.http.generation_request import GenerationRequest

with warnings.catch_warnings():
    # kafka-python reads its message schemas by a function of importlib that Python 3.11 and 3.12 call deprecated.
    warnings.simplefilter("ignore", DeprecationWarning)
    from kafka import KafkaProducer

app = FastAPI()
_TOPIC = os.environ.get("ACCEPT_TOPIC", "")
_producer: Any = KafkaProducer(bootstrap_servers=os.environ["ACCEPT_BOOTSTRAP_SERVERS"], acks="all")


@app.post("/v1/generations", status_code=202)
def submit(request: GenerationRequest) -> dict[str, str]:
    """Accept one request."""
    request_id = new_request_id()
    value = request.model_dump_json(exclude_unset=True).encode()
    _producer.send(_TOPIC, key=request_id.encode(), value=value)
    _producer.flush()
    return {"request_id": request_id, "status": "queued"}


@app.get("/healthz")
def health() -> dict[str, str]:
    """Answer."""
    return {"status": "alive"}
