"""The client of a gateway for commands: where the gateway is, and how a command ends when a call fails.

A request is sent once: which failures a command outlasts, and for how long, is its own.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import httpx
import typer

from fluxpool_cli.exit_codes import CommandError, ExitCode
from fluxpool_cli.local.state_file import running_stack
from fluxpool_client import (
    API_KEY_VARIABLE,
    DEFAULT_URL,
    URL_VARIABLE,
    AuthenticationError,
    Client,
    CorruptImageError,
    FieldError,
    FluxpoolError,
    GatewayFailedError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitedError,
    RefusedError,
    UnavailableError,
    UnexpectedResponseError,
    UnreachableError,
)

TIMEOUT_SECONDS: Final = 30.0
_OPTIONS: Final = {"url": "--url", "api_key": API_KEY_VARIABLE, "idempotency_key": "--idempotency-key"}
"""Where the arguments of the client come from."""

UrlOption = Annotated[
    str | None,
    typer.Option(
        envvar=URL_VARIABLE,
        help="The gateway; by default the one that `fluxpool local up` runs in this folder, else http://127.0.0.1:8000.",
    ),
]


def default_gateway_url(data_dir: Path | None = None) -> str:
    """The address of the local stack's gateway, else where a gateway listens by default."""
    state = running_stack(data_dir)
    return state.gateway_url if state is not None and state.gateway_url else DEFAULT_URL


@contextmanager
def gateway_client(url: str, *, timeout_seconds: float = TIMEOUT_SECONDS, max_attempts: int = 1) -> Iterator[Client]:
    """A client for a block; failures of its calls leave the block as `CommandError`."""
    with named_options():
        client = Client(url, timeout_seconds=timeout_seconds, max_attempts=max_attempts)
    try:
        with client:
            yield client
    except FluxpoolError as error:
        raise _as_command_error(error, url) from error


@contextmanager
def named_options() -> Iterator[None]:
    """For arguments of the client that come from options: what is wrong with them names these."""
    try:
        yield
    except ValueError as error:
        argument, colon, reason = str(error).partition(": ")
        raise CommandError(ExitCode.USAGE, f"{_OPTIONS.get(argument, argument)}{colon}{reason}") from None


def is_passing(error: FluxpoolError) -> bool:
    """Whether the same request may succeed later. Also after what no gateway answers: a proxy may be in front of it."""
    kinds = (UnreachableError, UnexpectedResponseError, UnavailableError, RateLimitedError, GatewayFailedError)
    return isinstance(error, (*kinds, CorruptImageError))


def reason_of(error: FluxpoolError) -> str:
    """Why a call failed: each refused field with its remedy, one a line."""
    if not isinstance(error, RefusedError):
        return str(error)
    return "\n".join(field_lines(error.fields)) or " ".join(error.detail.split("\n"))


def field_lines(fields: Iterable[FieldError]) -> list[str]:
    """Each field and what is wrong with it."""
    named = ((field.pointer.removeprefix("#").lstrip("/").replace("/", "."), field.detail) for field in fields)
    return [" ".join(f"{name}: {detail}".removeprefix(": ").split("\n")) for name, detail in named]


def _as_command_error(error: FluxpoolError, url: str) -> CommandError:
    reason = reason_of(error)
    match error:
        case AuthenticationError() | PermissionDeniedError():
            return CommandError(ExitCode.UNAUTHORIZED, f"not allowed: {reason}; set {API_KEY_VARIABLE}")
        case UnreachableError(__cause__=httpx.TimeoutException()):
            reason = f"the gateway at {url} did not answer in time; try again or check its log"
        case UnreachableError(__cause__=httpx.ConnectError() as cause):
            reason = (
                f"no gateway answers at {url} ({cause}); start one with `fluxpool local up`, "
                f"or name it with --url or {URL_VARIABLE}"
            )
        case UnreachableError(__cause__=cause):
            reason = f"the gateway at {url} broke the HTTP protocol ({cause}); try again or check --url"
        case UnexpectedResponseError() | GatewayFailedError(code=""):
            reason = f"there is no Fluxpool gateway at {url}: {reason}; check --url or {URL_VARIABLE}"
        case RateLimitedError() | UnavailableError() | GatewayFailedError():
            reason = f"the gateway cannot serve now: {reason}"
        case CorruptImageError():
            return CommandError(ExitCode.FAILED, reason)
        case NotFoundError():
            return CommandError(ExitCode.USAGE, f"{reason} ({url})")
        case _:
            return CommandError(ExitCode.USAGE, reason)
    return CommandError(ExitCode.UNREACHABLE, reason)
