"""Signs image files on a thread, and waits for a key that cannot sign: no file leaves unsigned when the pool has a key.

Knows neither tasks nor the store. What a signature is and which keys make one is `marks.signing`.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Final

import structlog

from fluxpool_contract.messages import Mark
from fluxpool_worker.agent.task.holds import HoldCause, Holds
from fluxpool_worker.engine.protocol import EncodedImage
from fluxpool_worker.marks.signing import FileSigner, SigningError

log: Final = structlog.get_logger(__name__)


class ImageSigning:
    """The signatures of a worker; without a folder it makes none."""

    def __init__(self, folder: Path | None, *, holds: Holds) -> None:
        """`folder` holds the key and the certificates, see `FileSigner`."""
        self._signer = None if folder is None else FileSigner(folder)
        self._holds = holds
        # One thread: a key signs one file at a time, in a hundredth of the time that a generation takes.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sign")

    @property
    def is_on(self) -> bool:
        """Whether files are signed."""
        return self._signer is not None

    async def probe(self) -> None:
        """Sign something; raises `SigningError`, which no waiting mends before a worker has begun."""
        log.info("image_signing", on=self.is_on)
        if self._signer is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._signer.probe)

    async def sign(self, image: EncodedImage) -> EncodedImage:
        """The image as it is to be stored; it waits while the key cannot sign, such as with an expired certificate.

        Raises `HoldExpiredError` past the limit of holds.
        """
        signer, source_type = self._signer, image.source_type
        if signer is None or source_type is None:
            return image

        async def sign() -> bytes:
            return await asyncio.get_running_loop().run_in_executor(
                self._thread,
                lambda: signer.sign(image.payload, content_type=image.content_type, source_type=source_type),
            )

        payload = await self._holds.through(sign, cause=HoldCause.SIGNING, retry_on=(SigningError,))
        return replace(image, payload=payload)

    def marks_of(self, image: EncodedImage) -> tuple[Mark, ...]:
        """The marks of an image that `sign` returned."""
        if image.source_type is None:
            return ()
        return (Mark.XMP, Mark.C2PA) if self.is_on else (Mark.XMP,)

    async def marks_in(self, payload: bytes) -> tuple[Mark, ...]:
        """The marks of a file that another worker stored, perhaps under other settings."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, _marks_in, payload)


def _marks_in(payload: bytes) -> tuple[Mark, ...]:
    from fluxpool_worker.image_marks import UnreadableImageError, read_marks  # noqa: PLC0415 - imports c2pa

    try:
        return read_marks(payload).marks
    except UnreadableImageError:
        return ()
