"""The file of a batch: one request for images a line, as JSON. Knows nothing of gateways."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from fluxpool_cli.exit_codes import CommandError, ExitCode
from fluxpool_client import BatchFields

MAX_FILE_BYTES: Final = 256 * 1024 * 1024
MAX_LINES: Final = 100_000
MAX_REQUESTS_AT_ONCE: Final = 256
"""Of the gateway's route."""
MAX_BYTES_AT_ONCE: Final = 512 * 1024
"""Below the gateway's limit of 768 KiB, with the keys and what JSON adds."""
_SHOWN_FAULTS: Final = 10
_NAME_CHARACTERS: Final = 24


@dataclass(frozen=True, slots=True)
class Line:
    """One request, and where it stands."""

    number: int
    """From 1, blank lines counted."""
    request: BatchFields
    size_bytes: int


@dataclass(frozen=True, slots=True)
class PromptFile:
    """The requests of a file, and a name that other content does not have."""

    lines: tuple[Line, ...]
    name: str


def read_prompts(path: Path) -> PromptFile:
    """Read a file; raises `CommandError` (2), which names the lines at fault."""
    try:
        with path.open("rb") as opened:
            content = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise CommandError(ExitCode.USAGE, f"{path} cannot be read: {error.strerror}") from None
    if len(content) > MAX_FILE_BYTES:
        raise CommandError(ExitCode.USAGE, f"{path} is larger than {MAX_FILE_BYTES} bytes; divide it")
    lines, faults = [], []
    for number, raw in enumerate(content.split(b"\n"), start=1):
        if not raw.strip():
            continue
        try:
            lines.append(Line(number, _request(raw), len(raw)))
        except ValueError as error:
            faults.append(f"line {number}: {error}")
    if faults:
        more = [f"and {len(faults) - _SHOWN_FAULTS} more"] if len(faults) > _SHOWN_FAULTS else []
        raise CommandError(ExitCode.USAGE, f"{path}: nothing was sent\n" + "\n".join(faults[:_SHOWN_FAULTS] + more))
    if not lines:
        raise CommandError(ExitCode.USAGE, f'{path} has no requests; write one a line, such as {{"prompt": "a fox"}}')
    if len(lines) > MAX_LINES:
        raise CommandError(ExitCode.USAGE, f"{path} has more than {MAX_LINES} requests; divide it")
    return PromptFile(tuple(lines), hashlib.sha256(content).hexdigest()[:_NAME_CHARACTERS])


def chunks(lines: Sequence[Line]) -> Iterator[list[Line]]:
    """The lines in parts that the gateway takes at once."""
    chunk: list[Line] = []
    size_bytes = 0
    for line in lines:
        if chunk and (len(chunk) == MAX_REQUESTS_AT_ONCE or size_bytes + line.size_bytes > MAX_BYTES_AT_ONCE):
            yield chunk
            chunk, size_bytes = [], 0
        chunk.append(line)
        size_bytes += line.size_bytes
    if chunk:
        yield chunk


def _request(raw: bytes) -> BatchFields:
    """The request in a line; its values are for the gateway to check. Raises `ValueError`."""
    try:
        request = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ValueError(f'is not JSON ({error}); write an object such as {{"prompt": "a fox"}}') from None
    is_request = isinstance(request, dict) and isinstance(request.get("prompt"), str)
    if not is_request:
        raise ValueError('must be an object with a prompt, such as {"prompt": "a fox", "seed": 7}')
    for field in ("group_id", "idempotency_key"):
        if field in request:
            raise ValueError(f"{field}: is the batch's own; leave it out (--name names the batch)")
    return cast("BatchFields", request)
