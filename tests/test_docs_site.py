"""The documentation builds without a warning, its links exist, and it has every public name."""

import contextlib
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import programs
import pytest

import moe_md as mm

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(
    p.relative_to(DOCS).with_suffix(".html")
    for p in DOCS.rglob("*.md")
    if not p.relative_to(DOCS).parts[0].startswith("_")
)
MARKUP = re.compile(
    r"\[\]\(|\{(?:math|include|eval-rst|ref|doc)\}|:(?:math|class|func|ref):`|^:::|\]\(\w+[./]", re.MULTILINE
)

build = pytest.importorskip("sphinx.cmd.build", reason="sphinx is not installed")


LOADED = ("script", "link", "img")


class Page(HTMLParser):
    """Links of a page, its anchors, and its text outside of code."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []  # scripts, styles, pictures
        self.formulas = 0
        self.anchors: set[str] = set()
        self.text: list[str] = []
        self._in_code = 0
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.links += [found[name] for name in ("href", "src") if found.get(name)]
        self.loaded += [found[name] for name in ("href", "src") if found.get(name) and tag in LOADED]
        self.formulas += tag == "math"
        self.anchors |= {found["id"]} if found.get("id") else set()
        self._in_code += tag in ("script", "style", "pre", "code")

    def handle_endtag(self, tag):
        self._in_code -= tag in ("script", "style", "pre", "code")

    def handle_data(self, data):
        if not self._in_code:
            self.text.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("site")
    messages = io.StringIO()
    arguments = ["-W", "--keep-going", "-q", "-E", "-b", "html", str(DOCS), str(out)]
    # Smoke: short trajectories in the pictures.
    with programs.fresh_process(out, MOE_MD_SMOKE="1"), contextlib.redirect_stderr(messages):
        status = build.build_main(arguments)
    assert status == 0, messages.getvalue()
    return out


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    return {
        path: Page(path)
        for path in site.rglob("*.html")
        if path.relative_to(site).parts[0] not in ("_modules", "_static")
    }


def test_pages_exist(site):
    assert len(PAGES) > 20
    for page in PAGES:
        assert (site / page).is_file(), page


def test_public_names_are_on_a_page(site, pages):
    anchors = set().union(*(page.anchors for path, page in pages.items() if path.parent == site / "api"))
    wanted = [
        f"module-{value.__name__}" if isinstance(value, ModuleType) else f"moe_md.{name}"
        for name, value in ((name, getattr(mm, name)) for name in mm.__all__)  # loaded when asked for
    ]
    wanted += [f"moe_md.regions.{name}" for name in mm.regions.__all__]
    wanted += [f"moe_md.experts.{name}" for name in mm.experts.__all__]
    assert "moe_md.experts.allegro" in wanted and "module-moe_md.simulate" in wanted
    assert not set(wanted) - anchors


def test_links_exist(site, pages):
    checked = 0
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.is_file(), f"{path.relative_to(site)}: {link}"
            if parts.fragment and target in pages:
                checked += 1
                assert unquote(parts.fragment) in pages[target].anchors, f"{path.relative_to(site)}: {link}"
    assert checked > 100


def test_no_markup_remains(site, pages):
    for path, page in pages.items():
        assert not (found := MARKUP.findall("".join(page.text))), f"{path.relative_to(site)}: {found}"


def test_no_page_needs_a_network(pages):
    """Scripts, styles and pictures are files of the site; formulas are MathML."""
    loaded = [link for page in pages.values() for link in page.loaded]
    assert loaded and not [link for link in loaded if urlsplit(link).netloc]
    assert sum(page.formulas for page in pages.values()) > 20


def test_pictures_are_drawn(site):
    drawn = {path.name for path in (site / "_images").iterdir() if path.stat().st_size > 5000}
    named = set(re.findall(r"_figures/([\w.]+)", "".join(p.read_text() for p in DOCS.rglob("*.md"))))
    assert len(named) >= 3 and named <= drawn
