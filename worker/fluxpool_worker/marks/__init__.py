"""The marks by which an image file says that a model made it. Needs neither torch nor the pixel encoders."""

from fluxpool_worker.marks.xmp import XMP_PNG_KEYWORD, DigitalSourceType, creator_tool, xmp_packet

__all__ = ["XMP_PNG_KEYWORD", "DigitalSourceType", "creator_tool", "xmp_packet"]
