"""Whether a URL is one that webhooks are sent to, as far as that is known without resolving its host. Pure."""

from urllib.parse import urlsplit

from fluxpool_gateway.settings import WebhookSettings
from fluxpool_gateway.webhooks.dispatch.addresses import is_address, refusal_of


def refusal_of_url(url: str, targets: WebhookSettings) -> str | None:
    """Why every attempt would be refused; None when it may be sent to. Names are resolved at each attempt."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme == "http" and not targets.allow_http:
        return "must begin with https://; this gateway sends webhooks by no other way"
    if is_address(host) and (reason := refusal_of(host, targets.networks())) is not None:
        return f"{reason}; use a public one, or have its network allowed in the gateway's settings"
    return None
