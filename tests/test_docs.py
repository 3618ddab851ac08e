"""Pages in docs/ keep their word: their programs run."""

import re
from pathlib import Path

import jax
import numpy as np
from ase.build import bulk
from ase.calculators.morse import MorsePotential

import moe_md as mm
from moe_md import checkpoint
from moe_md.interfaces.ase import MixtureCalculator

DOCS = Path(__file__).parent.parent / "docs"


def test_an_expert_of_ones_own(tmp_path, monkeypatch):
    """The page's program; its potential is ASE's, and a checkpoint holds it."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", (DOCS / "experts.md").read_text(), re.MULTILINE | re.DOTALL)
    told: dict = {}
    exec(compile(code, "experts.md", "exec"), told)
    assert np.abs(told["atoms"].get_forces().sum(axis=0)).max() < 1e-10

    expert = told["morse"](("Pt",), 6.0)
    ours, theirs = bulk("Pt", cubic=True).repeat(2), bulk("Pt", cubic=True).repeat(2)
    for atoms in (ours, theirs):
        atoms.rattle(0.1, seed=1)
    monkeypatch.setitem(mm.experts.BUILDERS, "morse", told["morse"])
    mm.save(tmp_path / "morse.msgpack", mm.Checkpoint((expert,), (expert.init(jax.random.key(0)),), {}, {}))
    ours.calc = MixtureCalculator(checkpoint.load(tmp_path / "morse.msgpack"), 0)
    # ASE's lengths are in units of r_0.
    theirs.calc = MorsePotential(epsilon=0.7, r0=2.8, rho0=1.6 * 2.8, rcut1=5.4 / 2.8, rcut2=6.0 / 2.8)
    np.testing.assert_allclose(ours.get_potential_energy(), theirs.get_potential_energy(), rtol=1e-10)
    np.testing.assert_allclose(ours.get_forces(), theirs.get_forces(), atol=1e-9)
    np.testing.assert_allclose(ours.get_stress(), theirs.get_stress(), atol=1e-10)


def test_several_devices():
    """The page's programs, one after the other."""
    told: dict = {}
    for code in re.findall(r"^```python\n(.*?)^```$", (DOCS / "devices.md").read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(code, "devices.md", "exec"), told)
    assert told["trained"].record["devices"] == len(jax.devices()) and told["trained"].record["step"] == 3
    totals = [frame.total for frame in told["result"].frames]
    assert len(totals) == 3 and np.isfinite(totals).all() and np.ptp(totals) < 0.1
