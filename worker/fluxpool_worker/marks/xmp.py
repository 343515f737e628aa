"""The XMP packet that every image file carries: where its picture comes from, and what made it. Pure.

XMP is ISO 16684-1; the property is the IPTC's, in the namespace that its Photo Metadata Standard names
`Iptc4xmpExt`. Where the packet is in a file is the knowledge of the encoders.
"""

import functools
import importlib.metadata
from enum import StrEnum
from typing import Final
from xml.sax.saxutils import escape

CLAIM_GENERATOR: Final = "Fluxpool"
"""The program's name in XMP and in signed manifests."""

XMP_PNG_KEYWORD: Final = "XML:com.adobe.xmp"
"""Of the text entry that holds the packet in PNG (XMP specification, part 3)."""


class DigitalSourceType(StrEnum):
    """Where a picture comes from, as terms of the IPTC's NewsCodes.

    Readers compare the text, and the text begins with http://.
    """

    TRAINED_ALGORITHMIC_MEDIA = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    """Made by a model from a text alone."""
    COMPOSITE_WITH_TRAINED_ALGORITHMIC_MEDIA = (
        "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
    )
    """Made by a model from another picture, too."""


def creator_tool(model: str | None) -> str:
    """This program and its version, with the model's name unless that is to be left out."""
    program = f"{CLAIM_GENERATOR} {program_version()}"
    return program if model is None else f"{program} ({model})"


@functools.cache
def program_version() -> str:
    """Of the installed distribution, whose metadata is a file to be read."""
    return importlib.metadata.version("fluxpool")


def xmp_packet(*, source_type: DigitalSourceType, creator: str) -> str:
    """A packet without room for later changes, in UTF-8 when encoded. What XML cannot hold of `creator` becomes `?`."""
    shown = "".join(character if character.isprintable() else "?" for character in creator)
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
        ' xmlns:xmp="http://ns.adobe.com/xap/1.0/">'
        f"<Iptc4xmpExt:DigitalSourceType>{source_type}</Iptc4xmpExt:DigitalSourceType>"
        f"<xmp:CreatorTool>{escape(shown)}</xmp:CreatorTool>"
        "</rdf:Description></rdf:RDF></x:xmpmeta>"
        '<?xpacket end="r"?>'
    )
