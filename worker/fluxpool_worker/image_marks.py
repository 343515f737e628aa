"""Reads the marks of an image file of any origin. Decodes no pixels, and fetches nothing from the network."""

import io
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

import c2pa
from PIL import Image, UnidentifiedImageError

from fluxpool_contract.messages import Mark
from fluxpool_worker.marks import DigitalSourceType
from fluxpool_worker.marks.signing import SIGNING_USAGES

FORMATS: Final = ("PNG", "JPEG", "WEBP")

_AI_SOURCES: Final = frozenset(DigitalSourceType)


class UnreadableImageError(ValueError):
    """The file is no image of a known format, or damaged; the message says what is wrong with it."""


class SignatureState(StrEnum):
    """What a content credential is worth."""

    TRUSTED = "trusted"
    """The bytes are those that were signed, and the signer's certificate leads to a given root."""
    VALID = "valid"
    """The bytes are those that were signed; who signed is not known."""
    INVALID = "invalid"


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentCredentials:
    """The C2PA manifest of a file; texts are the signer's and may hold anything."""

    state: SignatureState
    generator: str | None
    """Name of the program that made the manifest."""
    signer: str | None
    """Common name in the signer's certificate."""
    issuer: str | None
    """Organization in the signer's certificate."""
    signed_at: datetime | None
    """By a time-stamping authority; None without one."""
    source_type: str | None
    problems: tuple[str, ...]
    """Why it is not valid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundMarks:
    """The marks of one file."""

    format: str
    source_type: str | None
    """`Iptc4xmpExt:DigitalSourceType` of its XMP."""
    creator_tool: str | None
    credentials: ContentCredentials | None

    @property
    def marks(self) -> tuple[Mark, ...]:
        """Marks that are there, valid or not."""
        found = {Mark.XMP: self.source_type in _AI_SOURCES, Mark.C2PA: self.credentials is not None}
        return tuple(mark for mark, is_there in found.items() if is_there)

    @property
    def says_that_a_model_made_it(self) -> bool:
        """Whether one of the marks names a source that is a model."""
        signed = None if self.credentials is None else self.credentials.source_type
        return bool({self.source_type, signed} & _AI_SOURCES)


def read_marks(payload: bytes, *, anchors: str | None = None) -> FoundMarks:
    """The marks of a PNG, JPEG or WebP file; `anchors` are root certificates in PEM form.

    Raises `UnreadableImageError`.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            # No picture of ours is so large, and readers of its parameters would have to decode it.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(payload), formats=FORMATS) as image:
                properties = dict(_properties(image.getxmp()))
                image_format = str(image.format).lower()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImageError(f"is too large: {error}") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError) as error:
        raise UnreadableImageError(f"is no readable PNG, JPEG or WebP file: {error}") from error
    return FoundMarks(
        format=image_format,
        source_type=properties.get("DigitalSourceType"),
        creator_tool=properties.get("CreatorTool"),
        credentials=_credentials(payload, content_type=f"image/{image_format}", anchors=anchors),
    )


def _properties(node: Any) -> Iterator[tuple[str, str]]:
    """Texts in an XMP packet by their names without namespaces; XMP has several forms for the same."""
    if isinstance(node, list):
        for item in node:
            yield from _properties(item)
    elif isinstance(node, dict):
        for name, value in node.items():
            if isinstance(value, str):
                yield name, value
            else:
                yield from _properties(value)


def _credentials(payload: bytes, *, content_type: str, anchors: str | None) -> ContentCredentials | None:
    # The manifest of a foreign file may name an address to fetch it from.
    settings = {
        "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
        "trust": {"trust_config": "\n".join(SIGNING_USAGES), **({} if anchors is None else {"user_anchors": anchors})},
    }
    try:
        reader = c2pa.Reader.try_create(content_type, io.BytesIO(payload), context=c2pa.Context.from_dict(settings))
        if reader is None:
            return None
        with reader:
            found = json.loads(reader.json())
    except c2pa.C2paError as error:
        raise UnreadableImageError(f"holds content credentials that cannot be read: {error}") from error
    manifest = found.get("manifests", {}).get(found.get("active_manifest"), {})
    signature = manifest.get("signature_info") or {}
    generators = manifest.get("claim_generator_info") or [{}]
    signed_at = signature.get("time")
    return ContentCredentials(
        state=SignatureState(found["validation_state"].lower()),
        generator=generators[0].get("name"),
        signer=signature.get("common_name"),
        issuer=signature.get("issuer"),
        signed_at=None if signed_at is None else datetime.fromisoformat(signed_at),
        source_type=_created_source_type(manifest),
        problems=tuple(
            dict.fromkeys(
                f"{item.get('code')}: {item.get('explanation')}" for item in found.get("validation_status", ())
            )
        ),
    )


def _created_source_type(manifest: dict[str, Any]) -> str | None:
    for assertion in manifest.get("assertions", ()):
        if str(assertion.get("label")).startswith("c2pa.actions"):
            for action in assertion.get("data", {}).get("actions", ()):
                if action.get("action") == "c2pa.created":
                    return str(action.get("digitalSourceType"))
    return None
