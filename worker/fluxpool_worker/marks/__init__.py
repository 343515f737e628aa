"""The marks by which an image file says that a model made it. Needs neither torch nor the pixel encoders."""

from fluxpool_worker.marks.xmp import CLAIM_GENERATOR, XMP_PNG_KEYWORD, DigitalSourceType, creator_tool, xmp_packet

__all__ = ["CLAIM_GENERATOR", "XMP_PNG_KEYWORD", "DigitalSourceType", "creator_tool", "xmp_packet"]
