"""The client of a gateway for commands: where the gateway is, and how a command ends when a call fails.

A request is sent once: which failures a command outlasts, and for how long, is its own.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import httpx
import typer

from fluxpool_cli.exit_codes import CommandError, ExitCode
from fluxpool_cli.local.state_file import running_stack
from fluxpool_cli.profiles.file import PROFILE_VARIABLE, Profile, Profiles, config_file
from fluxpool_client import (
    API_KEY_VARIABLE,
    DEFAULT_URL,
    URL_VARIABLE,
    AsyncClient,
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
STREAM_SECONDS: Final = 5.0
"""To connect for a stream of events, and beyond its longest silence: what is slower is polled."""
ATTEMPTS: Final = 5
"""Of each request of a command that goes on for long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayAddress:
    """A gateway, the key for it, and what set either."""

    url: str
    url_source: str
    api_key: str | None
    key_source: str
    is_local: bool = False
    """Whether nothing but the local stack, or its absence, determined it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayOptions:
    """`--url` and `--profile`: which gateway, and with which key."""

    url: Annotated[
        str | None,
        typer.Option(
            help=f"The gateway; by default {URL_VARIABLE}, else that of the profile, else the one that "
            f"`fluxpool local up` runs in this folder, else {DEFAULT_URL}."
        ),
    ] = None
    profile: Annotated[
        str | None,
        typer.Option(
            help=f"Profile with the gateway and its key (`fluxpool profile`); by default {PROFILE_VARIABLE}, else the "
            "current one."
        ),
    ] = None

    def place(self, data_dir: Path | None = None, environment: Mapping[str, str] = os.environ) -> GatewayAddress:
        """Where the gateway is: an option wins over the environment, and that over the current profile.

        The key of a profile is sent to the gateway of that profile alone. Raises `CommandError` (2).
        """
        profile, by_option = self._profile(environment)
        profile_source = "" if profile is None else f"profile {profile.name}"
        of_profile = profile.url if profile is not None else None
        in_environment = environment.get(URL_VARIABLE)
        if self.url is not None:
            url, source = self.url, "--url"
        elif of_profile is not None and (by_option or not in_environment):
            url, source = of_profile, profile_source
        elif in_environment:
            url, source = in_environment, URL_VARIABLE
        else:
            url, source = default_gateway_url(data_dir), ""
        key, key_source = environment.get(API_KEY_VARIABLE) or None, API_KEY_VARIABLE
        may_have_key = profile is not None and profile.url is not None and profile.url.rstrip("/") == url.rstrip("/")
        if profile is not None and profile.api_key and may_have_key and (by_option or key is None):
            key, key_source = profile.api_key, profile_source
        return GatewayAddress(url=url, url_source=source, api_key=key, key_source=key_source, is_local=not source)

    @contextmanager
    def client(
        self, *, data_dir: Path | None = None, timeout_seconds: float = TIMEOUT_SECONDS, max_attempts: int = 1
    ) -> Iterator[Client]:
        """A client for a block; failures of its calls leave the block as `CommandError`."""
        place = self.place(data_dir)
        with named_options(place):
            client = Client(
                place.url, api_key=place.api_key, timeout_seconds=timeout_seconds, max_attempts=max_attempts
            )
        try:
            with client:
                yield client
        except FluxpoolError as error:
            raise _as_command_error(error, place) from error

    def stream_client(self, *, data_dir: Path | None = None) -> AsyncClient:
        """A client for a stream of events that is not opened again when it breaks; raises the client's own errors."""
        place = self.place(data_dir)
        return AsyncClient(place.url, api_key=place.api_key, timeout_seconds=STREAM_SECONDS, max_attempts=1)

    def _profile(self, environment: Mapping[str, str]) -> tuple[Profile | None, bool]:
        """The profile, if there is one, and whether an option named it."""
        named = environment.get(PROFILE_VARIABLE)
        has_url = self.url is not None or environment.get(URL_VARIABLE)
        if self.profile is None and not named and has_url and environment.get(API_KEY_VARIABLE):
            return None, False
        profiles = Profiles.load(config_file(environment))
        if self.profile is not None:
            return profiles.named(self.profile, source="--profile"), True
        if named:
            return profiles.named(named, source=PROFILE_VARIABLE), False
        return (None if profiles.current is None else profiles.profiles[profiles.current]), False


def default_gateway_url(data_dir: Path | None = None) -> str:
    """The address of the local stack's gateway, else where a gateway listens by default."""
    state = running_stack(data_dir)
    return state.gateway_url if state is not None and state.gateway_url else DEFAULT_URL


@contextmanager
def named_options(place: GatewayAddress | None = None) -> Iterator[None]:
    """For arguments of the client that come from options: what is wrong with them names what set them."""
    try:
        yield
    except ValueError as error:
        argument, colon, reason = str(error).partition(": ")
        sources = {"idempotency_key": "--idempotency-key"}
        if place is not None:
            sources |= {"url": place.url_source, "api_key": place.key_source}
        raise CommandError(ExitCode.USAGE, f"{sources.get(argument, argument)}{colon}{reason}") from None


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


def _as_command_error(error: FluxpoolError, place: GatewayAddress) -> CommandError:
    url = place.url
    reason = reason_of(error)
    match error:
        case AuthenticationError() | PermissionDeniedError():
            remedy = f"set {API_KEY_VARIABLE}" + (f"; this key is that of {place.key_source}" if place.api_key else "")
            return CommandError(ExitCode.UNAUTHORIZED, f"not allowed: {reason}; {remedy}")
        case UnreachableError(__cause__=httpx.TimeoutException()):
            reason = f"the gateway at {url} did not answer in time; try again or check its log"
        case UnreachableError(__cause__=httpx.ConnectError() as cause):
            reason = (
                f"no gateway answers at {url} ({cause}); start one with `fluxpool local up`, "
                f"or name another with --url, --profile or {URL_VARIABLE}"
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
