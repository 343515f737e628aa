"""A gateway as the command line sees it: submit, ask, download; every failure becomes an exit code and a sentence.

Owns the HTTP side of the commands. Knows nothing of Kafka or of processes.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from fluxpool_cli.exit_codes import CommandError, ExitCode
from fluxpool_contract.task import OutputFormat

URL_VARIABLE = "FLUXPOOL_URL"
API_KEY_VARIABLE = "FLUXPOOL_API_KEY"
DEFAULT_URL = "http://127.0.0.1:8000"

_SUCCESS = frozenset({"success", "succeeded"})
_FAILURE = frozenset({"failed", "expired", "canceled"})


@dataclass(frozen=True, slots=True)
class Generation:
    """One task as the gateway tells it; `document` is the whole answer."""

    document: Mapping[str, Any]

    @property
    def request_id(self) -> str:
        """Identity of the task."""
        return str(self.document["request_id"])

    @property
    def status(self) -> str:
        """The gateway's word for where the task is."""
        return str(self.document.get("status", "queued"))

    @property
    def succeeded(self) -> bool:
        """Whether the images are there."""
        return self.status in _SUCCESS

    @property
    def finished(self) -> bool:
        """Whether nothing will change any more."""
        return self.succeeded or self.status in _FAILURE

    @property
    def steps_done(self) -> tuple[int, int] | None:
        """Denoising steps done and in all; null while that is not known."""
        progress = self.document.get("progress") or {}
        step, total = progress.get("step"), progress.get("total_steps")
        return (int(step), int(total)) if step is not None and total else None

    @property
    def image_extensions(self) -> list[str]:
        """File name extension of each image, in order."""
        return [OutputFormat(image["format"]).extension for image in self.document.get("images") or []]

    @property
    def failure(self) -> str:
        """Why there are no images."""
        error = self.document.get("error") or {}
        what = ": ".join(str(error[key]) for key in ("field", "message") if error.get(key))
        code = f" ({error['code']})" if error.get("code") else ""
        return f"{self.request_id} {self.status}{': ' + what if what else ''}{code}"


class GatewayClient:
    """Blocking client of one gateway; a context manager.

    Every method raises `CommandError`: 2 for a request that was refused, 3 when nobody serves, 4 without permission.
    """

    def __init__(self, url: str, *, timeout_seconds: float = 30.0, environment: Mapping[str, str] = os.environ) -> None:
        """Take the address; connects with the first request."""
        if not url.startswith(("http://", "https://")):
            raise CommandError(ExitCode.USAGE, f"--url: {url!r} must begin with http:// or https://")
        key = environment.get(API_KEY_VARIABLE)
        self.url = url.rstrip("/")
        self._http = httpx.Client(
            base_url=self.url,
            timeout=timeout_seconds,
            headers={"authorization": f"Bearer {key}"} if key else {},
            follow_redirects=True,
            # A proxy of the environment has no business between this command and an address of the same machine.
            trust_env="//127.0.0.1" not in url and "//localhost" not in url,
        )

    def __enter__(self) -> Self:
        """The client itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the connections."""
        self._http.close()

    def submit(self, body: Mapping[str, Any], *, idempotency_key: str | None = None) -> Generation:
        """Send one request; returns it as accepted."""
        headers = {"idempotency-key": idempotency_key} if idempotency_key else {}
        return Generation(self._send("POST", "/v1/generations", json=dict(body), headers=headers).json())

    def generation(self, request_id: str) -> Generation:
        """The task now."""
        return Generation(self._send("GET", f"/v1/generations/{request_id}").json())

    def download(self, generation: Generation, folder: Path) -> list[Path]:
        """Write every image into `folder` as `{request_id}-{index}.{extension}` and return the files."""
        folder.mkdir(parents=True, exist_ok=True)
        files = []
        for index, extension in enumerate(generation.image_extensions):
            content = self._send("GET", f"/v1/generations/{generation.request_id}/images/{index}").content
            file = folder / f"{generation.request_id}-{index}.{extension}"
            file.write_bytes(content)
            files.append(file)
        return files

    def _send(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **arguments)
        except httpx.TimeoutException:
            raise CommandError(
                ExitCode.UNREACHABLE, f"the gateway at {self.url} did not answer in time; try again or check its log"
            ) from None
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise CommandError(
                ExitCode.UNREACHABLE,
                f"no gateway answers at {self.url} ({error}); start one with `fluxpool local up`, "
                f"or name it with --url or {URL_VARIABLE}",
            ) from None
        if response.is_success:
            return response
        raise refusal(response)


def refusal(response: httpx.Response) -> CommandError:
    """The error in an answer that is no success: each refused field with its remedy."""
    try:
        document = response.json()
    except ValueError:
        document = None
    problem = document if isinstance(document, dict) else {}
    detail = str(problem.get("detail") or problem.get("title") or f"HTTP {response.status_code}")
    fields = [
        f"{str(item.get('pointer', '')).removeprefix('#').lstrip('/').replace('/', '.')}: {item.get('detail')}"
        for item in problem.get("errors") or []
        if isinstance(item, dict)
    ]
    lines = "\n".join(line.removeprefix(": ") for line in fields) or detail
    match response.status_code:
        case 401 | 403:
            return CommandError(ExitCode.UNAUTHORIZED, f"not allowed: {lines}; set {API_KEY_VARIABLE}")
        case 404:
            return CommandError(ExitCode.USAGE, f"{lines} ({response.request.url})")
        case 429 | 500 | 502 | 503 | 504:
            return CommandError(ExitCode.UNREACHABLE, f"the gateway cannot serve now: {lines}")
        case _:
            return CommandError(ExitCode.USAGE, lines)
