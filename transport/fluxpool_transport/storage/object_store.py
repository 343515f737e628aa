"""The object store: S3 (or a compatible service) or a local folder, behind a few operations.

Owns the connection and which failures are outages. Knows nothing of what is stored. Objects are only created, never
replaced: the second writer of a key learns that it exists.

One request to S3 takes at most 20 s and is tried four times within 30 s (connection errors, 5xx, throttling); a whole
operation ends after 45 s. For longer outages the caller has to wait.
"""

import asyncio
import codecs
import errno
import os
import re
import stat
from collections.abc import Awaitable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeVar

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    InvalidPathError,
    NotSupportedError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnknownConfigurationKeyError,
)
from obstore.store import LocalStore, S3Store

from fluxpool_contract.settings import StorageSettings

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig, S3Config

T = TypeVar("T")
SignedMethod = Literal["GET", "HEAD"]

OPERATION_DEADLINE_SECONDS: Final = 45.0
PROBE_KEY: Final = "_fluxpool/probe"
"""Written by the first probe of a store and left there; tenants cannot begin with an underscore."""
PROBE_CONTENT: Final = b"fluxpool\n"

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
# How services say that they do not know `If-None-Match` on PUT: 501 NotImplemented, or 400 that names the header.
_NO_CONDITIONS: Final = re.compile(r"NotImplemented|status code: 501|If-None-Match", re.IGNORECASE)
# Errors of one file, which waiting does not mend; others are the disk's.
_OF_THE_FILE: Final = frozenset({errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO, errno.EINVAL})
# What a panic in the store library arrives as; neither class can be imported.
_PANICS: Final = frozenset({"RustPanic", "PanicException"})


class StorageUnavailableError(Exception):
    """The store cannot be used now: unreachable, out of space, or refusing; nothing is known about the object."""


class StorageCredentialsError(StorageUnavailableError):
    """The store cannot be used with these credentials."""


class ConditionalWritesError(StorageUnavailableError):
    """The store does not support creating an object only if it is absent; time alone does not mend that."""


class ObjectTooLargeError(Exception):
    """An object is larger than the caller takes."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        super().__init__(f"{size_bytes} bytes")


class ForeignObjectError(Exception):
    """What lies at a key of a folder is no file of that folder; the message says what it is."""


class ObjectStore:
    """Create-only access to one bucket prefix or folder. Keys are relative, with `/` between their segments.

    Every operation raises `StorageUnavailableError` when the store cannot be used, and `ValueError` for a key that is
    empty, absolute or not normalised.
    """

    def __init__(self, store: LocalStore | S3Store, *, url: str) -> None:
        self._store = store
        self.url: Final = url
        """Address that keys are relative to, with a slash at its end."""
        # The create of a folder is the operating system's; that of a service is its own, and must be seen to work.
        self._creates_conditionally = isinstance(store, LocalStore)

    def location(self, key: str) -> str:
        """Address of an object within the infrastructure: `s3://bucket/prefix/key` or `file:///folder/key`."""
        return self.url + _checked(key)

    async def put_if_absent(self, key: str, payload: bytes, *, content_type: str) -> bool:
        """Create the object; False when it existed and was left as it is.

        The first call on a service probes it, so that nothing is written to one that would overwrite objects. After a
        lost answer the request is repeated, so False may also mean that this very call created the object.
        """
        if not self._creates_conditionally:
            await self.probe()
        return await self._create(key, payload, content_type=content_type)

    async def _create(self, key: str, payload: bytes, *, content_type: str) -> bool:
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
        except NotSupportedError as error:
            raise self._without_conditions(str(error)) from error
        except FileNotFoundError as error:
            raise self._unavailable("create", key, error) from error
        return True

    async def get(self, key: str) -> bytes | None:
        """The object's bytes; None when there is no such object."""
        return await self._guarded("read", key, self._read(_checked(key)))

    async def get_bounded(self, key: str, *, folder: str, max_bytes: int) -> bytes | None:
        """The bytes of an object that others may have written by other means; None when there is no such object.

        `key` begins with `folder`, which no link may lead out of. Raises `ObjectTooLargeError` before it is read, and
        `ForeignObjectError` for what is no readable file.
        """
        checked = _checked(key)
        if isinstance(self._store, LocalStore):
            root = Path(str(self._store.prefix))
            reading = asyncio.to_thread(_read_file, root, root / folder, root / checked, max_bytes=max_bytes)
            try:
                return await self._guarded("read", key, reading)
            except FileNotFoundError as error:
                raise self._unavailable("read", key, error) from error
        return await self._guarded("read", key, self._read(checked, max_bytes=max_bytes))

    async def signed_url(self, key: str, *, valid_seconds: float, method: SignedMethod = "GET") -> str:
        """A URL under which the method, and no other, reads the object without credentials, whether it exists or not.

        Of a service alone.
        Its host is part of what is signed, so that the store's endpoint must be the one that the reader uses.
        """
        if isinstance(self._store, LocalStore):
            raise NotSupportedError(f"{self.url} is a folder")
        signing = obstore.sign_async(self._store, method, _checked(key), timedelta(seconds=valid_seconds))
        return await self._guarded("sign", key, signing)

    async def delete_below(self, folder: str) -> None:
        """Delete every object whose key has the folder before a slash; one that is absent counts as deleted.

        One request each: not every service that speaks S3 takes many keys in one.
        """
        found = await self._guarded("list", folder, self._list(_checked(folder)))
        for key in found:
            await self._guarded("delete", key, self._delete(key))

    async def _list(self, folder: str) -> list[str]:
        try:
            return [item["path"] async for chunk in obstore.list(self._store, folder) for item in chunk]
        except FileNotFoundError as error:
            raise self._unavailable("list", folder, error) from error

    async def _delete(self, key: str) -> None:
        # A folder tells that the file is missing, a service does not.
        with suppress(FileNotFoundError):
            await obstore.delete_async(self._store, key)

    async def probe(self) -> None:
        """Return when the store can be written to and read, and creates objects only if they are absent.

        Creates `PROBE_KEY` twice: a store that accepts the second one would overwrite images. Raises
        `ConditionalWritesError` then, and for a store that refuses such writes; else `StorageCredentialsError` or
        `StorageUnavailableError`.
        """
        await self._create_probe()
        if await self._create_probe():
            raise self._without_conditions("a second object replaced the first one")
        if await self.get(PROBE_KEY) is None:
            raise self._without_conditions(f"{PROBE_KEY} is reported to exist, but cannot be read")
        self._creates_conditionally = True

    async def _create_probe(self) -> bool:
        return await self._create(PROBE_KEY, PROBE_CONTENT, content_type="text/plain")

    async def _read(self, key: str, *, max_bytes: int | None = None) -> bytes | None:
        try:
            answer = await obstore.get_async(self._store, key)
        except FileNotFoundError as error:
            if _NO_BUCKET in str(error):
                raise self._unavailable("read", key, error) from error
            return None
        size = answer.meta["size"]
        if max_bytes is not None and size > max_bytes:
            raise ObjectTooLargeError(size)
        return bytes(await answer.bytes_async())

    async def _guarded(self, verb: str, key: str, operation: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(OPERATION_DEADLINE_SECONDS):
                return await operation
        except TimeoutError as error:
            raise self._unavailable(verb, key, f"no answer within {OPERATION_DEADLINE_SECONDS:.0f} s") from error
        except FileNotFoundError:
            raise
        except AlreadyExistsError as error:
            if verb != "create":
                raise self._unavailable(verb, key, error) from error
            raise
        except (InvalidPathError, NotSupportedError, UnknownConfigurationKeyError):
            raise
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise self._refused(verb, key, _reason(error)) from error
        except (BaseError, OSError) as error:
            raise self._unavailable(verb, key, error) from error
        except BaseException as error:
            if type(error).__name__ not in _PANICS:
                raise
            reason = "the store library failed, as it does for credentials with a line end or other control characters"
            raise self._refused(verb, key, reason) from error

    def _unavailable(self, verb: str, key: str, reason: object) -> StorageUnavailableError:
        text = _reason(reason)
        if verb == "create" and _NO_CONDITIONS.search(text):
            return self._without_conditions(text)
        return StorageUnavailableError(
            f"object store {self.url}: cannot {verb} {key}: {text}; check storage.url, storage.endpoint_url, "
            "the credentials (GetObject, PutObject, ListBucket; DeleteObject to delete) and free space"
        )

    def _refused(self, verb: str, key: str, reason: str) -> StorageCredentialsError:
        return StorageCredentialsError(
            f"object store {self.url}: cannot {verb} {key}: {reason}; check the credentials: "
            "storage.access_key_id and storage.secret_access_key, or those of the environment (AWS_*), must be valid, "
            "without line ends, and have the rights GetObject, PutObject and ListBucket, and DeleteObject to delete"
        )

    def _without_conditions(self, reason: str) -> ConditionalWritesError:
        return ConditionalWritesError(
            f"object store {self.url}: does not support conditional writes (PUT with If-None-Match: *), without which "
            f"one task could overwrite the images of another: {reason}; use a service or a release that supports them"
        )


def _reason(error: object) -> str:
    return _DEBUG_DUMP.sub("", str(error))[:_MAX_REASON_CHARACTERS]


def open_object_store(settings: StorageSettings) -> ObjectStore:
    """The store of the settings; a local folder is made when it is missing, S3 is first asked when it is used.

    Without keys in the settings S3 takes the credentials of the environment (variables, web identity, instance role).
    Raises `StorageUnavailableError` when the folder cannot be made or `storage.ca_file` cannot be used.
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
    if settings.ca_file is not None:
        client_options["root_certificate"] = _read_authorities(settings.ca_file)
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
    try:
        store = S3Store(
            bucket, prefix=prefix.rstrip("/") or None, config=config, client_options=client_options, retry_config=_RETRY
        )
    except (BaseError, ValueError) as error:
        raise StorageUnavailableError(
            f"object store {settings.url}: {_reason(error)}; check storage.endpoint_url and storage.ca_file"
        ) from error
    return ObjectStore(store, url=settings.url)


def _read_authorities(path: Path) -> bytes:
    try:
        # The store library finds no certificate behind a byte order mark, unlike OpenSSL.
        return path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise StorageUnavailableError(
            f"object store: storage.ca_file {path} cannot be read ({error.strerror}); mount it"
        ) from error


def _open_folder(folder: Path) -> LocalStore:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return LocalStore(prefix=folder)
    except (OSError, BaseError) as error:
        raise StorageUnavailableError(
            f"object store file://{folder}: the folder cannot be made ({error}); "
            "choose a storage.url that can be written to"
        ) from error


def _read_file(root: Path, folder: Path, file: Path, *, max_bytes: int) -> bytes | None:
    """A regular file below the folder, links resolved; see `ObjectStore.get_bounded`."""
    if not root.is_dir():
        raise FileNotFoundError(errno.ENOENT, "the folder is missing", str(root))
    try:
        found = file.resolve(strict=True)
        if not found.is_relative_to(folder.resolve(strict=True)):
            raise ForeignObjectError("is a link out of its folder")
        # Another process may put a link or a pipe there meanwhile; opening a pipe would wait for its writer.
        descriptor = os.open(found, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except RuntimeError:  # pathlib's, of a link that leads to itself
        raise ForeignObjectError("is a link to itself") from None
    except OSError as error:
        if error.errno in _OF_THE_FILE:
            raise ForeignObjectError(f"cannot be read ({error.strerror})") from None
        raise
    try:
        seen = os.fstat(descriptor)
        if not stat.S_ISREG(seen.st_mode):
            raise ForeignObjectError("is no regular file")
        if seen.st_size > max_bytes:
            raise ObjectTooLargeError(seen.st_size)
        with os.fdopen(descriptor, "rb", closefd=False) as opened:
            payload = opened.read(max_bytes + 1)
    finally:
        os.close(descriptor)
    if len(payload) > max_bytes:  # it has grown
        raise ObjectTooLargeError(len(payload))
    return payload


def _checked(key: str) -> str:
    if not key or any(part in {"", ".", ".."} for part in key.split("/")):
        raise ValueError(f"object key {key!r}: segments must not be empty, . or ..")
    return key
