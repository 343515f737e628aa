"""`fluxpool submit --image`: puts a picture into the store of the local stack, where its workers read it.

Other stores belong to others: there the caller puts the picture, and gives its address. The local stack has one tenant;
a gateway with API keys refuses the picture for any other.
"""

import asyncio
import hashlib
from pathlib import Path
from typing import Final

import typer

from fluxpool_cli.local.data_dir import DataDir, private_files
from fluxpool_cli.local.state_file import running_stack
from fluxpool_contract.folder_address import folder_address
from fluxpool_contract.messages import DEFAULT_TENANT, input_folder
from fluxpool_contract.settings import ImageSettings, StorageSettings
from fluxpool_transport.storage import StorageUnavailableError, open_object_store

_OPTION: Final = "--image"
_LIMITS: Final = ImageSettings()
"""Those of the local stack's workers."""
_FOLDER: Final = input_folder(_LIMITS.input_prefix, DEFAULT_TENANT)
_SIGNATURES: Final = ((b"\x89PNG\r\n\x1a\n", 0, "png"), (b"\xff\xd8\xff", 0, "jpeg"), (b"WEBP", 8, "webp"))


def image_address(image: str, *, data_dir: Path, is_local: bool) -> str:
    """The address that a task names: `image` itself when it is one, else that of a copy of the file.

    The name of the copy depends on its content alone, so that a repeated request is the same request. Raises
    `typer.BadParameter`.
    """
    if "://" in image:
        return image
    stack = running_stack(data_dir) if is_local else None
    if stack is None:
        raise typer.BadParameter(
            "a file can be sent to the local stack alone (`fluxpool local up`); put it into the folder of your tenant "
            f"in the pool's storage, and give its address, such as s3://bucket/{_FOLDER}cat.png",
            param_hint=_OPTION,
        )
    payload = _read(Path(image))
    kind = _kind_of(payload)
    key = f"{_FOLDER}{hashlib.sha256(payload).hexdigest()}.{kind}"
    settings = StorageSettings(url=folder_address(DataDir(stack.data_dir).images))
    try:
        with private_files():
            store = open_object_store(settings)
            asyncio.run(store.put_if_absent(key, payload, content_type=f"image/{kind}"))
    except StorageUnavailableError as error:
        raise typer.BadParameter(str(error), param_hint=_OPTION) from None
    return key


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            payload = opened.read(_LIMITS.input_max_bytes + 1)
    except OSError as error:
        raise typer.BadParameter(f"{file} cannot be read ({error.strerror})", param_hint=_OPTION) from None
    if len(payload) > _LIMITS.input_max_bytes:
        raise typer.BadParameter(
            f"{file} is larger than {_LIMITS.input_max_bytes:,} bytes; scale it down", param_hint=_OPTION
        )
    return payload


def _kind_of(payload: bytes) -> str:
    for signature, offset, kind in _SIGNATURES:
        if payload.startswith(signature, offset):
            return kind
    raise typer.BadParameter("is no PNG, JPEG or WebP file", param_hint=_OPTION)
