"""Secrets of webhooks as they are stored: encrypted with keys from a file, or as they are where there is none.

Encrypted with Fernet (AES-128-CBC and HMAC-SHA256, of the package cryptography). The first key of the file encrypts,
all of them decrypt, and secrets are encrypted again when a program starts (`start`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from fluxpool_gateway.webhooks.database import WebhooksUnavailableError

SEALED_PREFIX: Final = "fernet:"
"""What encrypted secrets begin with; others begin with `whsec_`."""
MAX_KEYS: Final = 10
_MAX_FILE_BYTES: Final = 4096


class SecretKeysError(Exception):
    """The file has no keys that can be used; the message names the setting and the remedy."""


class SealedSecretError(WebhooksUnavailableError):
    """A secret cannot be decrypted; the message names the remedy."""


class SecretBox:
    """Encrypts and decrypts secrets."""

    def __init__(self, keys: Sequence[bytes] = ()) -> None:
        """`keys` as Fernet has them, the one that encrypts first; without any secrets are stored as they are."""
        self._fernets = [Fernet(key) for key in keys]
        self._fernet = MultiFernet(self._fernets) if keys else None

    @property
    def encrypts(self) -> bool:
        """Whether it has keys."""
        return self._fernet is not None

    def seal(self, secret: str) -> str:
        """The form in which a secret is stored."""
        return secret if self._fernet is None else SEALED_PREFIX + self._fernet.encrypt(secret.encode()).decode()

    def open(self, stored: str) -> str:
        """The secret itself; raises `SealedSecretError`."""
        if not stored.startswith(SEALED_PREFIX):
            return stored
        if self._fernet is None:
            raise SealedSecretError(
                "the secrets of webhooks are encrypted; set webhooks.key_file to the file with the key"
            )
        try:
            return self._fernet.decrypt(stored.removeprefix(SEALED_PREFIX)).decode()
        except InvalidToken:
            raise SealedSecretError(
                "the secrets of webhooks are encrypted with a key that webhooks.key_file has not; add it to the file"
            ) from None

    def renew(self, stored: str) -> str:
        """The form in which it would be stored now: itself where the first key has encrypted it; raises as `open`."""
        if self._fernet is not None and stored.startswith(SEALED_PREFIX):
            try:
                self._fernets[0].decrypt(stored.removeprefix(SEALED_PREFIX))
            except InvalidToken:
                pass
            else:
                return stored
        return self.seal(self.open(stored))


def open_secret_box(file: Path | None) -> SecretBox:
    """The box with the keys of a file, one a line; raises `SecretKeysError`."""
    if file is None:
        return SecretBox()
    setting = f"webhooks.key_file: {file}"
    try:
        with file.open("rb") as opened:
            read = opened.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise SecretKeysError(f"{setting} cannot be read ({error.strerror}); mount it, or correct the path") from error
    keys = read.split()
    if not keys or len(keys) > MAX_KEYS or len(read) > _MAX_FILE_BYTES:
        raise SecretKeysError(f"{setting} must have 1 to {MAX_KEYS} keys, one a line; {_HOW_TO_MAKE_ONE}")
    try:
        return SecretBox(keys)
    except ValueError:
        # Without the reason: it could quote the key.
        raise SecretKeysError(f"{setting} has a line that is no key; {_HOW_TO_MAKE_ONE}") from None


_HOW_TO_MAKE_ONE: Final = "make one with `openssl rand -base64 32 | tr +/ -_`"
