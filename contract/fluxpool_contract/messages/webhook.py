"""The webhook of a task: where its end is posted to. Written by gateways, read by their dispatcher; not by workers."""

from enum import StrEnum
from ipaddress import IPv6Address, ip_address
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from fluxpool_contract.text_rules import MAX_URL_CHARACTERS


class TaskEvent(StrEnum):
    """The end of a task, as webhooks name it."""

    SUCCEEDED = "generation.succeeded"
    FAILED = "generation.failed"
    CANCELED = "generation.canceled"
    EXPIRED = "generation.expired"


def _check_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("is not a URL; write one such as https://example.com/hooks") from None
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("must be printable ASCII without blanks; write others percent-encoded, hosts as xn--")
    if parts.scheme not in {"https", "http"} or not parts.hostname or port == 0:
        raise ValueError("must begin with https:// and name a host")
    if "@" in parts.netloc:
        raise ValueError("must not have a user or password; messages are signed, check their signature")
    if "#" in url:
        raise ValueError("must not have a fragment")
    _check_host(parts.hostname, in_brackets="[" in parts.netloc)
    return url


def _check_host(host: str, *, in_brackets: bool) -> None:
    if in_brackets:
        if not isinstance(ip_address(host), IPv6Address):
            raise ValueError("has no IPv6 address in its brackets")
    elif not all(character.isalnum() or character in "-._" for character in host):
        raise ValueError("has a host with characters that no host has")


WebhookUrl = Annotated[str, Field(max_length=MAX_URL_CHARACTERS), AfterValidator(_check_url)]
"""What messages can be posted to; whether they may be is the gateway's choice."""


class TaskWebhook(BaseModel):
    """Where the end of one task is posted to."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", use_attribute_docstrings=True)

    url: WebhookUrl
    """`https://`, without a user, password or fragment."""
    events: Annotated[tuple[Annotated[TaskEvent, Field(strict=False)], ...], Field(max_length=len(TaskEvent))] = ()
    """Which ends: generation.succeeded, .failed, .canceled, .expired. Absent or empty: any."""
