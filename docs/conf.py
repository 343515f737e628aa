"""Sphinx configuration of the documentation site; `make docs` builds it."""

import tomllib
from pathlib import Path
from typing import Final

from pygments.lexers.data import JsonLexer
from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

FOLDER: Final = Path(__file__).parent

project = "Fluxpool"
author = "the Fluxpool authors"
project_copyright = "%Y, the Fluxpool authors"
release = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())["project"]["version"]

extensions = ["myst_parser", "sphinx_copybutton", "sphinxcontrib.mermaid"]
# `asyncapi.json` and the schemas are downloads of the reference, not pages.
exclude_patterns = ["_build"]
nitpicky = True

myst_heading_anchors = 4
myst_fence_as_directive = ["mermaid"]
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
html_title = f"Fluxpool {release}"
html_extra_path = ["llms.txt"]
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_theme_options = {"navigation_with_keys": True}


def setup(app: Sphinx) -> None:
    """Name the languages of the examples, and publish each page's Markdown beside its HTML: `llms.txt` links to it."""
    app.add_lexer("jsonl", JsonLexer)
    app.add_lexer("event-stream", TextLexer)
    app.connect("build-finished", _publish_sources)


def _publish_sources(app: Sphinx, exception: Exception | None) -> None:
    if exception is not None or app.builder.format != "html":
        return
    for name in app.env.found_docs:
        page = Path(app.outdir, f"{name}.md")
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_bytes(Path(app.srcdir, f"{name}.md").read_bytes())
