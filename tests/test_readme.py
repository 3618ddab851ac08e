"""The README keeps its word: its code runs, its tables are what the results say, its commands are CI's."""

import os
import re
import tomllib
from pathlib import Path

import programs
import pytest

from moe_md import checkpoint
from moe_md.experts import build
from moe_md.settings import LossWeights, TrainSettings

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
    """Here, as most programs of the pages; `test_docs` runs one of them as a process."""
    with programs.carbon_monoxide_stands_on_carbon(code):
        programs.run_here(code, "README.md", tmp_path, MOE_MD_SMOKE="1")
    assert capsys.readouterr().out


def test_there_is_python_and_toml():
    assert len(blocks("python")) >= 1 and len(blocks("toml")) >= 1


@pytest.mark.parametrize("text", blocks("toml"))
def test_settings_are_valid(text):
    tables = tomllib.loads(text)
    expensive, cheap = build(tables["expensive"]), build(tables["cheap"])
    assert expensive.species == cheap.species
    training = dict(tables["training"])
    TrainSettings(**{**training, "weights": LossWeights(**training.get("weights", {}))})


def test_tables_are_what_the_results_say(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import tables

    pages = [page.read_text() for page in tables.PAGES]
    assert README in pages
    assert sorted(re.findall(r"<!-- table: (\w+) -->", "".join(pages))) == sorted(tables.TABLES)
    for page in pages:
        assert tables.fill(page) == page, "python benchmarks/tables.py --write"


def test_commands_are_those_of_ci():
    assert MAIN_COMMAND in README and TEST_COMMAND in README
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == TEST_COMMAND


def test_ci_is_executable():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
