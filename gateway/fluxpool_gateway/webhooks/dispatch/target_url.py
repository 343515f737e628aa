"""Whether a URL is one that webhooks are sent to, as far as that is known without resolving its host. Pure."""

from typing import Final
from urllib.parse import urlsplit

from fluxpool_gateway.settings import WebhookSettings
from fluxpool_gateway.webhooks.dispatch.addresses import is_address, refusal_of

MAX_HOST: Final = 253
MAX_LABEL: Final = 63
"""RFC 1035 section 2.3.4."""


def refusal_of_url(url: str, targets: WebhookSettings) -> str | None:
    """Why every attempt would be refused; None when it may be sent to. Names are resolved at each attempt."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme == "http" and not targets.allow_http:
        return "must begin with https://; this gateway sends webhooks by no other way"
    labels = host.removesuffix(".").split(".")
    if not is_address(host) and (len(host) > MAX_HOST or not all(0 < len(label) <= MAX_LABEL for label in labels)):
        return f"has a host that no name can be: {MAX_HOST} characters at most, in parts of 1 to {MAX_LABEL}"
    if is_address(host) and (reason := refusal_of(host, targets.networks())) is not None:
        return f"{reason}; use a public one, or have its network allowed in the gateway's settings"
    return None
