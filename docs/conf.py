"""Sphinx configuration of the documentation site; `make docs` builds it."""

import tomllib
from html import escape
from pathlib import Path
from typing import Any, Final

from docutils import nodes
from pygments.lexers.data import JsonLexer
from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

FOLDER: Final = Path(__file__).parent
MERMAID: Final = "mermaid.tiny-11.17.2.js"
MERMAID_SHA256: Final = "7a644017d37f93c8359790884e6b67fb1f747c78eb20475952404bd87190a3f8"
"""Of `dist/mermaid.tiny.js` in the release 11.17.2 of @mermaid-js/tiny, MIT (`_static/mermaid-LICENSE.txt`)."""

project = "Fluxpool"
author = "the Fluxpool authors"
project_copyright = "%Y, the Fluxpool authors"
release = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())["project"]["version"]

extensions = ["myst_parser", "sphinx_copybutton"]
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


class Diagram(SphinxDirective):
    """A diagram, which the browser draws.

    By classic scripts of the site: a module, as sphinxcontrib-mermaid makes one, is not loaded from a file.
    """

    has_content = True

    def run(self) -> list[nodes.Node]:
        """The diagram as text, for the script and for readers without one."""
        text = "\n".join(self.content)
        return [nodes.raw("", f'<pre class="mermaid">{escape(text)}</pre>', format="html")]


def setup(app: Sphinx) -> None:
    """Name the languages of the examples, and publish each page's Markdown beside its HTML: `llms.txt` links to it."""
    app.add_directive("mermaid", Diagram)
    app.connect("html-page-context", _add_diagram_scripts)
    app.add_lexer("jsonl", JsonLexer)
    app.add_lexer("event-stream", TextLexer)
    app.connect("build-finished", _publish_sources)


def _add_diagram_scripts(app: Sphinx, _page: str, _template: str, _context: dict[str, Any], body: Any) -> None:
    """To pages with a diagram alone: the larger one has 2.5 MB."""
    if body is not None and any('class="mermaid"' in raw.astext() for raw in body.findall(nodes.raw)):
        for name in (MERMAID, "diagrams.js"):
            app.add_js_file(name, loading_method="defer")


def _publish_sources(app: Sphinx, exception: Exception | None) -> None:
    if exception is not None or app.builder.format != "html":
        return
    for name in app.env.found_docs:
        page = Path(app.outdir, f"{name}.md")
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_bytes(Path(app.srcdir, f"{name}.md").read_bytes())
