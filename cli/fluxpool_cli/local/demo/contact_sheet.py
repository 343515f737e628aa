"""The contact sheet of a demo: one HTML file with every picture, its prompt and its seed, beside the folder of images.

It needs no program but a browser, and loads nothing but the images. Knows no Kafka.
"""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from fluxpool_contract.messages import GenerationResult, ImageDescription

FILE_NAME: Final = "contact-sheet.html"
_HEAD: Final = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Fluxpool demo</title>
<style>
:root { color-scheme: light dark; --soft: light-dark(#555b6b, #a9afc0); --sunk: light-dark(#eceef3, #262936); }
body { margin: 1.5rem; font: 1rem/1.4 system-ui, sans-serif; }
ul { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: 1.25rem; margin: 0; padding: 0; }
li { list-style: none; }
img { width: 100%; aspect-ratio: 1; object-fit: contain; background: var(--sunk); border-radius: .5rem; }
p { margin: .25rem 0 0; }
.facts { color: var(--soft); font-size: .875rem; }
</style>
"""


def write_contact_sheet(
    folder: Path, submitted: Mapping[str, Mapping[str, Any]], *, results: Sequence[GenerationResult], images: Path
) -> Path | None:
    """Write the sheet into the folder, which has the folder of `images` in it; None when there is no picture.

    `submitted` are the requests by id, in the order of the sheet.
    """
    by_id = {result.request_id: result for result in results}
    tiles = [
        _tile(str(body["prompt"]), result, image, folder=images.name)
        for request_id, body in submitted.items()
        if (result := by_id.get(request_id)) is not None
        for image in result.images
    ]
    if not tiles:
        return None
    file = folder / FILE_NAME
    model = next(result.model for result in results if result.images)
    title = f"{len(tiles)} pictures of {Path(model or 'an unknown model').name}"
    file.write_text(f"{_HEAD}<h1>{escape(title)}</h1>\n<ul>\n{''.join(tiles)}</ul>\n</html>\n", encoding="utf-8")
    return file


def _tile(prompt: str, result: GenerationResult, image: ImageDescription, *, folder: str) -> str:
    address, text = f"{quote(folder)}/{quote(image.object)}", escape(prompt)
    return (
        f'<li><a href="{address}"><img src="{address}" alt="{text}" loading="lazy"></a><p>{text}</p>'
        f'<p class="facts">seed {image.seed}, {image.width} by {image.height} pixels, {result.steps} steps</p></li>\n'
    )
