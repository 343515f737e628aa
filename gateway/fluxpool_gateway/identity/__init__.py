"""Who calls the gateway: API keys, what they allow, and the tenant whose tasks a caller sees."""

from fluxpool_gateway.identity.api_key import KeyScope, new_key, parse_key

__all__ = ["KeyScope", "new_key", "parse_key"]
