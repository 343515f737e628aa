"""A client that sends a burst of tasks, each under an idempotency key of its number. A program: it can be killed.

Prints one JSON object: the seconds of the whole burst and the milliseconds of each request. Every request is repeated
until the gateway accepts it.
"""

import asyncio
import contextlib
import json
import os
import sys
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

import aiohttp

REPEAT_SECONDS: Final = 0.05


@dataclass(slots=True)
class Burst:
    """What to send, and how long each request took."""

    url: str
    key: str
    name: str
    tasks: int
    in_one_request: int
    connections: int
    accepted: set[str] = field(default_factory=set)
    milliseconds: list[float] = field(default_factory=list)
    repeats: int = 0

    async def send(self) -> float:
        """Send everything; returns the seconds."""
        numbers = iter(range(0, self.tasks, self.in_one_request))
        timeout = aiohttp.ClientTimeout(total=30)
        headers = {"authorization": f"Bearer {self.key}"}
        connector = aiohttp.TCPConnector(limit=self.connections)
        async with aiohttp.ClientSession(self.url, connector=connector, headers=headers, timeout=timeout) as session:
            began = time.perf_counter()

            async def send_in_turn() -> None:
                for first in numbers:
                    await self._send(session, range(first, min(first + self.in_one_request, self.tasks)))

            await asyncio.gather(*(send_in_turn() for _ in range(self.connections)))
            return time.perf_counter() - began

    async def _send(self, session: aiohttp.ClientSession, numbers: range) -> None:
        left = list(numbers)
        while left:
            began = time.perf_counter()
            with contextlib.suppress(aiohttp.ClientError):
                left = await (self._one(session, left) if self.in_one_request == 1 else self._many(session, left))
            self.milliseconds.append(1000 * (time.perf_counter() - began))
            if left:
                self.repeats += 1
                await asyncio.sleep(REPEAT_SECONDS)

    async def _one(self, session: aiohttp.ClientSession, left: list[int]) -> list[int]:
        headers = {"idempotency-key": self._key_of(left[0])}
        async with session.post("/v1/generations", json=_task(left[0]), headers=headers) as response:
            document = await response.json(content_type=None)
            if response.status != HTTPStatus.ACCEPTED:
                return left
            self.accepted.add(document["request_id"])
            return []

    async def _many(self, session: aiohttp.ClientSession, left: list[int]) -> list[int]:
        requests = [{**_task(number), "idempotency_key": self._key_of(number)} for number in left]
        async with session.post("/v1/generations/batch", json={"requests": requests}) as response:
            document = await response.json(content_type=None)
            if response.status >= HTTPStatus.BAD_REQUEST:
                return left
        items = list(zip(left, document["items"], strict=True))
        self.accepted |= {item["request_id"] for _, item in items if item["code"] == HTTPStatus.ACCEPTED}
        return [number for number, item in items if item["code"] != HTTPStatus.ACCEPTED]

    def _key_of(self, number: int) -> str:
        return f"{self.name}:{number}"


def _task(number: int) -> dict[str, Any]:
    return {"prompt": f"fox {number}, seconds=0.001", "width": 64, "height": 64, "steps": 1, "seed": number}


def main() -> None:
    """Read the burst from the first argument, with the API key from the environment."""
    burst = Burst(key=os.environ["BURST_KEY"], **json.loads(sys.argv[1]))
    seconds = asyncio.run(burst.send())
    document = {
        "seconds": seconds,
        "milliseconds": burst.milliseconds,
        "repeats": burst.repeats,
        "accepted": sorted(burst.accepted),
    }
    sys.stdout.write(json.dumps(document) + "\n")


if __name__ == "__main__":
    main()
