"""The object store: S3 (and what speaks it) or a local folder, behind four operations.

Owns how the store is reached and which of its failures are outages. Knows nothing of what is stored. Objects are only
ever created, never replaced: whoever comes second finds out.

One request to S3 takes at most 20 s and is tried four times within 30 s (connection errors, 5xx, throttling); a whole
operation ends after 45 s. Longer outages are the caller's to sit out.
"""

import asyncio
import os
import re
from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    InvalidPathError,
    NotSupportedError,
    UnknownConfigurationKeyError,
)
from obstore.store import LocalStore, S3Store

from fluxpool_contract.settings import StorageSettings

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig, S3Config

T = TypeVar("T")

OPERATION_DEADLINE_SECONDS: Final = 45.0
PROBE_KEY: Final = "_fluxpool/probe"
"""Written once, when a store is probed for the first time; tenants cannot begin with an underscore."""

_CONNECT_TIMEOUT: Final = timedelta(seconds=5)
_REQUEST_TIMEOUT: Final = timedelta(seconds=20)
_RETRY: "Final[RetryConfig]" = {
    "max_retries": 3,
    "retry_timeout": timedelta(seconds=30),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2},
}
_DEFAULT_REGION: Final = "us-east-1"
# obstore raises FileNotFoundError for a missing bucket as for a missing key; only the answer's body tells them apart.
_NO_BUCKET: Final = "<Code>NoSuchBucket</Code>"
_DEBUG_DUMP: Final = re.compile(r"\s*Debug source:.*", re.DOTALL)
_MAX_REASON_CHARACTERS: Final = 500


class StorageUnavailableError(Exception):
    """The store cannot be used now: unreachable, out of space, or refusing; nothing is known about the object."""


@dataclass(frozen=True, slots=True)
class ObjectHead:
    """What is known about an object without reading it."""

    size_bytes: int
    modified_at: datetime


class ObjectStore:
    """Create-only access to one bucket prefix or folder. Keys are relative, with `/` between their segments.

    Every operation raises `StorageUnavailableError` when the store cannot be used, and `ValueError` for a key that is
    empty, absolute or not normalised.
    """

    def __init__(self, store: LocalStore | S3Store, *, url: str) -> None:
        self._store = store
        self._url = url
        self._creates_conditionally: bool | None = None

    def location(self, key: str) -> str:
        """Address of an object within the infrastructure: `s3://bucket/prefix/key` or `file:///folder/key`."""
        return self._url + _checked(key)

    async def put_if_absent(self, key: str, payload: bytes, *, content_type: str) -> bool:
        """Create the object; False when it existed and was left as it is.

        After a lost answer the request is repeated, so False may also mean that this very call created the object.
        """
        # A folder has nowhere to keep a media type.
        attributes = None if isinstance(self._store, LocalStore) else {"Content-Type": content_type}
        try:
            await self._guarded(
                "create",
                key,
                obstore.put_async(self._store, _checked(key), payload, mode="create", attributes=attributes),
            )
        except AlreadyExistsError:
            return False
        except FileNotFoundError as error:
            raise self._unavailable("create", key, error) from error
        return True

    async def get(self, key: str) -> bytes | None:
        """The object's bytes; None when there is no such object."""
        return await self._guarded("read", key, self._read(_checked(key)))

    async def head(self, key: str) -> ObjectHead | None:
        """Size and age of an object; None when there is no such object."""
        try:
            meta = await self._guarded("look up", key, obstore.head_async(self._store, _checked(key)))
        except FileNotFoundError:
            return None
        return ObjectHead(size_bytes=meta["size"], modified_at=meta["last_modified"])

    async def probe(self) -> None:
        """Return when the store can be written to and keeps its word about creating.

        Writes `PROBE_KEY` if it is absent. Raises `StorageUnavailableError` otherwise, also for a store that replaces
        objects although it was told to create them only.
        """
        created = await self._put_probe()
        if not created:
            self._creates_conditionally = True
        elif self._creates_conditionally is None:
            self._creates_conditionally = not await self._put_probe()
        if not self._creates_conditionally:
            raise StorageUnavailableError(
                f"object store {self._url}: ignores If-None-Match and would overwrite images; "
                "use a release or a service that supports conditional writes"
            )

    async def _put_probe(self) -> bool:
        return await self.put_if_absent(PROBE_KEY, b"fluxpool\n", content_type="text/plain")

    async def _read(self, key: str) -> bytes | None:
        try:
            answer = await obstore.get_async(self._store, key)
        except FileNotFoundError as error:
            if _NO_BUCKET in str(error):
                raise self._unavailable("read", key, error) from error
            return None
        return bytes(await answer.bytes_async())

    async def _guarded(self, verb: str, key: str, operation: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(OPERATION_DEADLINE_SECONDS):
                return await operation
        except TimeoutError as error:
            raise self._unavailable(verb, key, f"no answer within {OPERATION_DEADLINE_SECONDS:.0f} s") from error
        except (FileNotFoundError, AlreadyExistsError):
            raise
        except (InvalidPathError, NotSupportedError, UnknownConfigurationKeyError):
            raise
        except (BaseError, OSError) as error:
            raise self._unavailable(verb, key, error) from error

    def _unavailable(self, verb: str, key: str, reason: object) -> StorageUnavailableError:
        text = _DEBUG_DUMP.sub("", str(reason))[:_MAX_REASON_CHARACTERS]
        return StorageUnavailableError(
            f"object store {self._url}: cannot {verb} {key}: {text}; check storage.url, storage.endpoint_url, "
            "the credentials (GetObject, PutObject, ListBucket) and free space"
        )


def open_object_store(settings: StorageSettings) -> ObjectStore:
    """The store of the settings; a local folder is made when it is missing, S3 is first asked when it is used.

    Without keys in the settings S3 takes the credentials of the environment (variables, web identity, instance role).
    Raises `StorageUnavailableError` when the folder cannot be made.
    """
    folder = settings.folder
    if folder is not None:
        return ObjectStore(_open_folder(folder), url=settings.url)
    bucket, _, prefix = settings.url.removeprefix("s3://").partition("/")
    client_options: ClientConfig = {
        "connect_timeout": _CONNECT_TIMEOUT,
        "timeout": _REQUEST_TIMEOUT,
        "allow_http": settings.endpoint_url is not None and settings.endpoint_url.startswith("http://"),
    }
    config: S3Config = {
        "region": settings.region or os.environ.get("AWS_REGION") or _DEFAULT_REGION,
        # Services other than AWS rarely have a wildcard name for their buckets.
        "virtual_hosted_style_request": settings.endpoint_url is None,
    }
    if settings.endpoint_url is not None:
        config["endpoint"] = settings.endpoint_url.rstrip("/")
    if settings.access_key_id is not None and settings.secret_access_key is not None:
        config["access_key_id"] = settings.access_key_id
        config["secret_access_key"] = settings.secret_access_key.get_secret_value()
    store = S3Store(
        bucket, prefix=prefix.rstrip("/") or None, config=config, client_options=client_options, retry_config=_RETRY
    )
    return ObjectStore(store, url=settings.url)


def _open_folder(folder: Path) -> LocalStore:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return LocalStore(prefix=folder)
    except (OSError, BaseError) as error:
        raise StorageUnavailableError(
            f"object store file://{folder}: the folder cannot be made ({error}); "
            "choose a storage.url that can be written to"
        ) from error


def _checked(key: str) -> str:
    if not key or any(part in {"", ".", ".."} for part in key.split("/")):
        raise ValueError(f"object key {key!r}: segments must not be empty, . or ..")
    return key
