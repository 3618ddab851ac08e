"""Runs that leave physics end with the last good state."""

import re

import ase.io
import numpy as np
import pytest
from ase import Atoms
from run_options import failure, options
from springs import FREE, INTEGRATORS, REST, Record, run

from moe_md import simulate

# Limits -------------------------------------------------------------------------

NO_LIMITS = dict.fromkeys(vars(simulate.Limits()), np.inf)


@pytest.mark.parametrize(
    "limits, message",
    [
        ({"max_move_A": 2.0}, "by more than max_move_A = 2 Å in a step"),
        ({"max_temperature_K": 1e3, "max_temperature_factor": 10.0}, r"temperature must stay below \d{4}"),
        ({"max_energy_change_eV_per_atom": 0.05}, r"conserved energy must stay within 0\.3 eV"),
        ({"max_energy_change_factor": 0.5}, r"max_energy_change_factor = 0\.5 times the kinetic energy"),
        ({}, None),
    ],
)
def test_each_limit_ends_an_unstable_run_and_can_be_raised(limits, message):
    """Steps of 60 fs are longer than the springs allow."""
    record, limits = Record(), simulate.Limits(**NO_LIMITS | limits)
    more = {"n_steps": 12, "chunk_steps": 2, "record": record, "limits": limits}
    if message is None:
        assert run(simulate.nve(FREE, 60.0), **more).state.step == 12
        return
    with pytest.raises(simulate.SimulationError, match=message) as raised:
        run(simulate.nve(FREE, 60.0), **more)
    assert re.search(r"atoms? \d.*\(counted from 0\)", str(raised.value))
    assert raised.value.state.step == record.failed_at == record.frames[-1].step
    assert len(raised.value.log.step) == len(record.frames)


RIGHT = {
    "at rest in the minimum": ("nve", REST, 0.0),
    "released": ("nve", REST * 1.03, 0.0),
    "hot": ("nve", REST, 6000.0),
    "quenched": ("langevin", REST, 6000.0),
    "heated from rest": ("nose_hoover", REST * 1.001, 0.0),
}


@pytest.mark.parametrize("name", RIGHT)
def test_right_runs_do_not_reach_the_limits(name):
    ensemble, position, temperature_K = RIGHT[name]
    result = run(INTEGRATORS[ensemble], position, n_steps=60, temperature_K=temperature_K)
    assert result.state.step == 60


def test_a_velocity_in_other_units_is_refused_before_the_first_step():
    """Å/ps in place of Å / (Å sqrt(amu / eV)): a hundred times too fast."""
    record = Record()
    velocity = np.random.default_rng(0).normal(scale=5.0, size=(6, 3))
    with pytest.raises(simulate.SimulationError, match="max_move_A.*at step 0"):
        run(INTEGRATORS["nve"], record=record, velocity=velocity, temperature_K=None)
    assert record.frames == [] and record.failed_at == 0


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), "much"])
def test_limits_that_are_no_limits_are_refused(value):
    with pytest.raises(ValueError, match="max_move_A must be"):
        simulate.Limits(max_move_A=value)


# The command ------------------------------------------------------------------


def test_an_explosion_ends_with_exit_code_1_and_the_last_good_state(tmp_path, folder, capsys):
    atoms = ase.io.read(folder / "slab.extxyz")
    atoms += Atoms("O", atoms.positions[-1:] + np.array([[0, 0, 0.9]]))
    atoms.write(tmp_path / "a.extxyz")
    chosen = options(folder, tmp_path / "a.extxyz", **{"region-lower": 9.0, "steps": 20, "log-every": 2})
    out = tmp_path / "out"
    err = failure(capsys, "run", *chosen, "--trajectory-every", 2, "--out", out, code=1)
    assert "counted from 0" in err and re.search(r"atoms?.* 64\b", err)
    assert "last_good.npz" in err and "timestep_fs" in err
    with np.load(out / "last_good.npz") as last:
        assert int(last["step"]) == 0
        np.testing.assert_allclose(last["position"], atoms.get_positions(wrap=True), atol=1e-6)
    assert ase.io.read(out / "final.extxyz").info["step"] == 0
    assert len((out / "log.csv").read_text().splitlines()) == 2
