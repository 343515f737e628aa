"""Turns a worker into one of a next release: Python runs this first when it is on the PYTHONPATH.

There is no later release to run beside this one, so this changes a worker of this release as the contract allows a next
minor release to: everything that it writes for others has additional content, and all else is unchanged.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

RELEASE = "99.1.0"


def _become_the_next_release() -> None:
    # Here and in this order: each change must be made before other packages take the function from the face.
    from fluxpool_contract import kafka, messages  # noqa: PLC0415

    kafka.encode_ledger = _with_more_in_the_ledger(kafka.encode_ledger)
    messages.cloud_event_headers = _with_another_header("ce_fluxpoolrelease", messages.cloud_event_headers)
    kafka.retry_headers = _with_another_header("fluxpool-next-release", kafka.retry_headers)

    from fluxpool_contract.messages import ProgressEvent  # noqa: PLC0415
    from fluxpool_transport.storage import task_objects  # noqa: PLC0415

    kinds: tuple[Any, ...] = (ProgressEvent, task_objects.Claim, task_objects.Manifest)
    for kind in kinds:
        kind.to_json = _with_more_in_the_json(kind.to_json)

    from fluxpool_worker.agent.task import outgoing_records  # noqa: PLC0415

    outgoing_records.success_result = _with_more_in_the_result(outgoing_records.success_result)
    outgoing_records.failed_result = _with_more_in_the_result(outgoing_records.failed_result)


def _with_more_in_the_ledger(encode: Callable[..., str]) -> Callable[..., str]:
    def encode_more(*arguments: Any, **named: Any) -> str:
        text = encode(*arguments, **named)
        if not text:
            return text
        body = json.loads(text)
        body["release"] = RELEASE
        for task in body["tasks"].values():
            task["phase"] = {"name": "denoise", "steps": [1, 2]}
        return json.dumps(body)

    return encode_more


def _with_another_header(name: str, render: Callable[..., list[tuple[str, bytes]]]) -> Callable[..., Any]:
    def render_more(*arguments: Any, **named: Any) -> list[tuple[str, bytes]]:
        return [*render(*arguments, **named), (name, RELEASE.encode())]

    return render_more


def _with_more_in_the_json(encode: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    def encode_more(message: Any) -> bytes:
        return json.dumps({**json.loads(encode(message)), "release": RELEASE}).encode()

    return encode_more


def _with_more_in_the_result(build: Callable[..., Any]) -> Callable[..., Any]:
    def build_more(*arguments: Any, **named: Any) -> Any:
        result = build(*arguments, **named)
        images = tuple(image.model_copy(update={"preview": {"width": 16}}) for image in result.images)
        return result.model_copy(update={"images": images, "release": RELEASE})

    return build_more


# Not the engine: it always has the release of its agent, and knows nothing of Kafka.
if "fluxpool_worker" in sys.orig_argv:
    _become_the_next_release()
