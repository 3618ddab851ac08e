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


# Page, sentence, and the row of a table in docs/results.md that has the same numbers.
SENTENCES = [
    ("README.md", r"causes falls from (\d+) to ([\d.]+) meV/Å", None),
    (
        "README.md",
        r"drifts by ([\d.]+) ± ([\d.]+) µeV",
        r"float64, 1 fs, 10 ps \|[^|]+\| \+([\d.]+) ± ([\d.]+) \|",
    ),
    (
        "docs/index.md",
        r"is \[([\d.]+) times faster",
        r"\| mixture, static region \| 0\.05 \|[^|]+\| ([\d.]+) \|",
    ),
    (
        "docs/how_it_works.md",
        r"this is ([\d.]+)\.",
        r"\| mixture, static region \| 0\.05 \|[^|]+\|[^|]+\| ([\d.]+) \|",
    ),
    (
        "docs/results.md",
        r"a step is ([\d.]+) times",
        r"\| mixture, static region \| 0\.05 \|[^|]+\| ([\d.]+) \|",
    ),
]
GHOST_FORCE = r"^\| {} \|(?:[^|]+\|){{5}} ([\d.]+)"  # sixth column of the comparison of trainings


@pytest.mark.parametrize("page, sentence, row", SENTENCES)
def test_numbers_in_sentences_are_those_of_the_tables(page, sentence, row):
    results = (ROOT / "docs" / "results.md").read_text()
    if row is None:
        ways = ("independently", r"partial forces and stress \(default\)")
        measured = [re.search(GHOST_FORCE.format(way), results, re.MULTILINE)[1] for way in ways]
    else:
        measured = list(re.search(row, results).groups())
    written = re.search(sentence, (ROOT / page).read_text()).groups()
    # As many digits as the sentence has.
    digits = [len(number.partition(".")[2]) for number in written]
    assert [f"{float(x):.{n}f}" for x, n in zip(measured, digits)] == list(written)


def test_commands_are_those_of_ci():
    assert MAIN_COMMAND in README and TEST_COMMAND in README
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == TEST_COMMAND


def test_ci_is_executable():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_links_exist():
    for target in re.findall(r"\]\(([^)#]+)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
