"""Pictures that tasks start from: objects that a client has put into the store and a task names.

Owns what a task may name. The address is a stranger's: only objects below one prefix of the pool's own store are read,
and no more of them than the pool allows.
"""

from fluxpool_contract.problems import ErrorCode, FieldProblem, InvalidTaskError
from fluxpool_transport.storage.object_store import ForeignObjectError, ObjectStore, ObjectTooLargeError


async def read_input(
    store: ObjectStore, address: str, *, prefix: str, max_bytes: int, request_id: str | None = None
) -> bytes:
    """The bytes of the picture at `address`, the key of an object or its whole address.

    Raises `InvalidTaskError` for an address outside `prefix`, for an object that is absent, too large or no file, and
    `StorageUnavailableError` when the store cannot be used.
    """

    def refused(reason: str) -> InvalidTaskError:
        return InvalidTaskError(ErrorCode.INVALID_FIELD, [FieldProblem("image", reason)], request_id=request_id)

    key = _key_of(address, store=store, prefix=prefix)
    if key is None:
        raise refused(f"must be below {prefix} in the pool's storage, such as {prefix}cat.png")
    try:
        payload = await store.get_bounded(key, folder=prefix, max_bytes=max_bytes)
    except ObjectTooLargeError as error:
        raise refused(
            f"{key} has {error.size_bytes:,} bytes; at most {max_bytes:,} are allowed (image.input_max_bytes)"
        ) from None
    except ForeignObjectError as error:
        raise refused(f"{key} {error}; put the picture itself there") from None
    if payload is None:
        raise refused(f"there is no {key} in the pool's storage; put the picture there before the task is sent")
    return payload


def _key_of(address: str, *, store: ObjectStore, prefix: str) -> str | None:
    """The key below `prefix`; None for anything else."""
    key = address.removeprefix(store.url)
    is_normal = key.isprintable() and not any(part in {"", ".", ".."} for part in key.split("/"))
    return key if is_normal and key.startswith(prefix) else None
