"""Pages in docs/: their programs run, their commands exist, their settings are valid."""

import re
import shlex
import tomllib
from pathlib import Path

import jax
import numpy as np
import programs
import pytest
from ase.build import bulk
from ase.calculators.morse import MorsePotential
from depths import short

import moe_md as mm
from moe_md import checkpoint
from moe_md.commands import main as cli
from moe_md.commands import settings_file
from moe_md.interfaces.ase import MixtureCalculator
from moe_md.settings import LossWeights, TrainSettings

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
HOWTOS = sorted((DOCS / "howto").glob("*.md"))
PAGES = sorted(page for page in DOCS.rglob("*.md") if not page.relative_to(DOCS).parts[0].startswith("_"))


def blocks(page: Path, *languages: str) -> list[str]:
    return re.findall(
        rf"^```(?:{'|'.join(languages)})\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL
    )


def commands() -> list[str]:
    """Every line in shell blocks of the pages that calls `moe-md`."""
    lines = (
        line for page in PAGES for text in blocks(page, "sh", "bash", "console") for line in text.splitlines()
    )
    return [line.removeprefix("$ ") for line in lines if line.removeprefix("$ ").startswith("moe-md ")]


OTHERS = [DOCS / f"{name}.md" for name in ("data", "transformations")]
# The pages of an own expert and an own region have tests of their own, below.
PROGRAMS = [
    page for page in (*HOWTOS, *OTHERS) if blocks(page, "python") and not page.stem.startswith("own_")
]


@pytest.mark.parametrize(
    "page",
    short(
        PROGRAMS,
        thorough=[
            page for page in PROGRAMS if page.stem in ("train", "float32_tpu", "gpu", "transformations")
        ],
    ),
    ids=lambda page: page.stem,
)
def test_programs_run(page, tmp_path, capsys):
    """All blocks of a page, in order, are one program."""
    code = "\n".join(blocks(page, "python"))
    if "XLA_FLAGS" in code:  # two devices, which must be set before jax starts
        printed = programs.run_as_process(code, tmp_path)
    else:
        with programs.carbon_monoxide_stands_on_carbon(code):
            programs.run_here(code, page.name, tmp_path)
        printed = capsys.readouterr().out
    assert printed and "nan" not in printed.lower().split()


@pytest.mark.parametrize("line", commands())
def test_commands_exist(line):
    """Options are those of the real parser, and settings of `run` are valid together."""
    parsed = cli.make_parser().parse_args(shlex.split(line, comments=True)[1:])
    if parsed.command in ("region", "run", "export"):
        settings_file.settings(parsed.settings_class, parsed.table, parsed)


def test_there_are_commands():
    assert {shlex.split(line)[1] for line in commands()} == {
        "data",
        "init",
        "demo",
        "train",
        "evaluate",
        "validate",
        "region",
        "run",
        "export",
        "bench",
    }


@pytest.mark.parametrize("text", [text for page in PAGES for text in blocks(page, "toml")])
def test_settings_are_valid(text):
    tables = tomllib.loads(text)
    for name in {"expensive", "cheap"} if "start" not in tables else {"cheap"}:
        mm.experts.build(tables[name])
    training = dict(tables["training"])
    TrainSettings(**{**training, "weights": LossWeights(**training.get("weights", {}))})


def test_citation():
    """CITATION.cff has the version and licence of pyproject.toml."""
    fields = dict(re.findall(r"^([\w-]+): (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (fields["version"], fields["license"]) == (project["version"], project["license"])


def test_own_expert(tmp_path, monkeypatch):
    """The potential of the page equals the Morse potential of ASE, and a checkpoint can hold it."""
    (code,) = blocks(DOCS / "howto/own_expert.md", "python")
    program = programs.run_here(code, "own_expert.md", tmp_path)
    assert np.abs(program["atoms"].get_forces().sum(axis=0)).max() < 1e-10

    expert = program["morse"](("Pt",), 6.0)
    ours, theirs = bulk("Pt", cubic=True).repeat(2), bulk("Pt", cubic=True).repeat(2)
    for atoms in (ours, theirs):
        atoms.rattle(0.1, seed=1)
    monkeypatch.setattr("moe_md.experts.base.BUILDERS", {})
    mm.experts.register_expert(program["morse"])
    mm.save(tmp_path / "morse.msgpack", mm.Checkpoint((expert,), (expert.init(jax.random.key(0)),), {}, {}))
    ours.calc = MixtureCalculator(checkpoint.load(tmp_path / "morse.msgpack"), 0)
    # ASE's lengths are in units of r_0.
    theirs.calc = MorsePotential(epsilon=0.7, r0=2.8, rho0=1.6 * 2.8, rcut1=5.4 / 2.8, rcut2=6.0 / 2.8)
    np.testing.assert_allclose(ours.get_potential_energy(), theirs.get_potential_energy(), rtol=1e-10)
    np.testing.assert_allclose(ours.get_forces(), theirs.get_forces(), atol=1e-9)
    np.testing.assert_allclose(ours.get_stress(), theirs.get_stress(), atol=1e-10)


def test_own_region(tmp_path):
    """The gate of the page conserves momentum and energy."""
    program = programs.run_here(
        "\n".join(blocks(DOCS / "howto/own_region.md", "python")), "own_region.md", tmp_path
    )
    assert np.abs(program["gradient"].sum(axis=0)).max() < 1e-12
    assert np.ptp(program["result"].log.total) < 2e-3
    assert np.any((program["share"] > 0.01) & (program["share"] < 0.99))  # some atoms are shared


@pytest.mark.thorough
def test_several_devices():
    """The programs of the page, one after the other."""
    program: dict = {}
    for code in re.findall(
        r"^```python\n(.*?)^```$", (DOCS / "devices.md").read_text(), re.MULTILINE | re.DOTALL
    ):
        exec(compile(code, "devices.md", "exec"), program)
    assert (
        program["trained"].record["devices"] == len(jax.devices()) and program["trained"].record["step"] == 3
    )
    totals = [frame.total for frame in program["result"].frames]
    assert len(totals) == 3 and np.isfinite(totals).all() and np.ptp(totals) < 0.1
