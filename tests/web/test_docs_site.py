"""The documentation site as `make docs` builds it, opened from its files in a browser without a network."""

import hashlib
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from playwright.async_api import expect

from kit.http.browser import opened_tab, running_browser

pytestmark = [pytest.mark.on_change("docs"), pytest.mark.timeout(300)]

DOCS = Path(__file__).parents[2] / "docs"
DIAGRAM = re.compile(r"^```mermaid\n.*?^```$", re.DOTALL | re.MULTILINE)


class Loaded(HTMLParser):
    """What a page has its browser load."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.inline = ""
        self._is_inline = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self._is_inline = tag in {"script", "style"} and "src" not in given
        is_loaded = tag in {"script", "img", "iframe", "source"} or (tag == "link" and given.get("rel") != "canonical")
        self.addresses += [value for name in ("src", "href") if is_loaded and (value := given.get(name)) is not None]

    def handle_data(self, data: str) -> None:
        if self._is_inline:
            self.inline += data


def other_hosts(site: Path) -> Iterator[str]:
    """Each address of another host that a page or a style of the site loads."""
    for file in site.rglob("*.html"):
        page = Loaded()
        page.feed(file.read_text())
        inline = re.findall(r"""(?:import|from|url\()\s*["']?((?:https?:)?//[^"')\s]+)""", page.inline)
        yield from (one for one in (*page.addresses, *inline) if re.match("(https?:)?//", one))
    for file in site.rglob("*.css"):
        yield from re.findall(r"""(?:@import\s*|url\()\s*["']?((?:https?:)?//[^"')\s]+)""", file.read_text())


def diagrams() -> list[str]:
    return [
        one for file in (DOCS.parent / "README.md", *DOCS.rglob("*.md")) for one in DIAGRAM.findall(file.read_text())
    ]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of all diagrams with the configuration, theme and extensions of the documentation."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    (source / "index.md").write_text("\n\n".join(["# Diagrams", *diagrams()]))
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-b", "html", "-c", str(DOCS), str(source), str(built)]
    subprocess.run(command, check=True)
    return built


def test_the_site_loads_nothing_from_another_host(site: Path) -> None:
    assert [*other_hosts(site)] == []
    # The pages add nothing: all they have comes from Markdown.
    loading = re.compile(r"<(?:script|link|style|iframe|img)\b|!\[[^\]]*\]\((?:https?:)?//", re.IGNORECASE)
    assert [file.name for file in DOCS.rglob("*.md") if loading.search(_without_code(file.read_text()))] == []


def _without_code(text: str) -> str:
    return re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)


def test_another_hosts_script_or_style_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<script src="https://one.example/a.js"></script><script type="module">import a from "https://two.example/a";'
        '</script><link rel="stylesheet" href="//three.example/a.css"><a href="https://four.example">a link</a>'
    )
    (tmp_path / "a.css").write_text('@import "https://five.example/a.css"; a { background: url(//six.example/a.png); }')
    hosts = [re.findall("[a-z]+(?=.example)", address)[0] for address in other_hosts(tmp_path)]
    assert hosts == ["one", "three", "two", "five", "six"]


def test_the_script_of_diagrams_is_the_released_file() -> None:
    configured = runpy.run_path(str(DOCS / "conf.py"))
    content = (DOCS / "_static" / configured["MERMAID"]).read_bytes()
    assert hashlib.sha256(content).hexdigest() == configured["MERMAID_SHA256"]


async def test_diagrams_are_drawn_from_the_files_alone(site: Path) -> None:
    async with running_browser() as browser, opened_tab(browser, site.as_uri() + "/") as tab:
        await tab.page.context.set_offline(True)
        page = await tab.open("index.html")
        await expect(page.locator("pre.mermaid svg")).to_have_count(len(diagrams()))
        assert len(diagrams()) >= 3
        # One that cannot be drawn is an error.
        assert tab.errors == []
