"""Secrets of endpoints and signatures of messages, as Standard Webhooks specifies them. Pure but for randomness.

The specification: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import base64
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - what secrets begin with
SECRET_BYTES: Final = 32
"""The specification has 24 to 64."""


@dataclass(frozen=True, slots=True)
class Secret:
    """One secret of an endpoint."""

    text: str
    """In the form in which it is stored (`secret_box`)."""
    expires_at_ms: int | None = None
    """None for the newest, which a rotation ends."""

    def is_valid(self, now_ms: int) -> bool:
        """Whether messages are signed with it."""
        return self.expires_at_ms is None or now_ms < self.expires_at_ms


def new_secret() -> str:
    """A new random secret."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def sign(texts: Sequence[str], *, message_id: str, timestamp_seconds: int, body: bytes) -> str:
    """The value of `webhook-signature`: one signature for each secret, the newest first."""
    signed = f"{message_id}.{timestamp_seconds}.".encode() + body
    return " ".join(f"v1,{_signature(text, signed)}" for text in texts)


def _signature(text: str, signed: bytes) -> str:
    key = base64.b64decode(text.removeprefix(SECRET_PREFIX))
    return base64.b64encode(hmac.digest(key, signed, "sha256")).decode()
