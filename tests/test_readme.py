"""The README: its programs run, its commands are those of CI, tables equal the results, links exist."""

import os
import re
from pathlib import Path

import programs
import pytest

from moe_md import checkpoint

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
TEST_COMMAND = "python3 -m venv .venv && .venv/bin/pip install -q -e '.[test]' && .venv/bin/python -m pytest"
MAIN_COMMAND = "python3 -m venv .venv && .venv/bin/pip install -q . && .venv/bin/moe-md demo --out demo"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.mark.skipif(
    "ptco" not in checkpoint.models(), reason="the package holds no checkpoint named ptco yet"
)
@pytest.mark.parametrize("code", blocks("python"))
def test_python_runs(code, tmp_path, capsys):
    with programs.carbon_monoxide_stands_on_carbon(code):
        programs.run_here(code, "README.md", tmp_path, MOE_MD_SMOKE="1")
    assert capsys.readouterr().out


def test_there_are_two_programs():
    assert [len(code.splitlines()) for code in blocks("python")] == [8, 12]


def test_it_is_short_and_its_pictures_are_small():
    assert 6_000 <= len(README.encode()) <= 8_192
    pictures = re.findall(r"!\[[^]]+\]\((docs/[^)]+)\)", README)
    assert len(pictures) == 2
    for picture in pictures:
        assert 1_000 < (ROOT / picture).stat().st_size < 100_000, picture


def test_tables_equal_the_results(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import tables

    pages = [page.read_text() for page in tables.PAGES]
    assert README in pages
    assert sorted(re.findall(r"<!-- table: (\w+) -->", "".join(pages))) == sorted(tables.TABLES)
    for page in pages:
        assert tables.fill(page) == page, "run: python benchmarks/tables.py --write"


def test_commands_are_those_of_ci():
    assert MAIN_COMMAND in README and TEST_COMMAND in README
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == TEST_COMMAND


def test_ci_is_executable():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_links_exist():
    for target in re.findall(r"\]\(([^)#]+)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
