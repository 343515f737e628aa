"""API keys as text: how they are made, recognised and hashed. Knows nothing of HTTP or of the store.

A key is `fp_<id>_<secret><checksum>`. The id is public: it names the key in logs, lists and commands. The secret has
256 bits. The checksum (CRC-32, as GitHub's tokens have it) lets a secret scanner tell a key from text that looks like
one, and lets the gateway refuse a mistyped key without reading its store; it protects nothing.

Keys are stored as SHA-256. Slow hashes (argon2, scrypt) make guessing a password expensive; a secret of 256 random bits
cannot be guessed at any speed, and a slow hash would cost more than everything else a submission does.
"""

import hashlib
import re
import secrets
import string
import zlib
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

_ALPHABET: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase
_ID_CHARACTERS: Final = 12
_SECRET_CHARACTERS: Final = 43
"""62^43 is just above 2^256."""
_CHECKSUM_CHARACTERS: Final = 6
"""62^6 is above 2^32."""
KEY_ID_PATTERN: Final = f"[0-9A-Za-z]{{{_ID_CHARACTERS}}}"
KEY_PATTERN: Final = f"fp_{KEY_ID_PATTERN}_[0-9A-Za-z]{{{_SECRET_CHARACTERS + _CHECKSUM_CHARACTERS}}}"
"""The form for secret scanners."""
_KEY: Final = re.compile(KEY_PATTERN)


class KeyScope(StrEnum):
    """What a key allows."""

    SUBMIT = "submit"
    READ = "read"
    CANCEL = "cancel"
    RATE = "rate"
    ADMIN = "admin"
    """To create, list, rotate and revoke the keys of every tenant."""


@dataclass(frozen=True, slots=True)
class PresentedKey:
    """A well-formed key that a client presents; it may be invented. Its text is not kept."""

    key_id: str
    digest: bytes = field(repr=False)
    """SHA-256 of the whole key."""


def new_key() -> str:
    """A new random key."""
    body = f"fp_{_random(_ID_CHARACTERS)}_{_random(_SECRET_CHARACTERS)}"
    return body + _checksum(body)


def parse_key(text: str) -> PresentedKey | None:
    """The key in a text; None when no gateway ever made it."""
    if not _KEY.fullmatch(text):
        return None
    body, checksum = text[:-_CHECKSUM_CHARACTERS], text[-_CHECKSUM_CHARACTERS:]
    if _checksum(body) != checksum:
        return None
    return PresentedKey(text.split("_")[1], hashlib.sha256(text.encode()).digest())


def _random(characters: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(characters))


def _checksum(body: str) -> str:
    number = zlib.crc32(body.encode())
    digits = []
    for _ in range(_CHECKSUM_CHARACTERS):
        number, digit = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
