"""Ghost forces are zero for identical experts and a pair sum for Lennard-Jones experts; stress jumps."""

import json

import jax
import numpy as np
import pytest
from ase.build import bulk
from ase.units import GPa
from depths import short

from moe_md import experts
from moe_md.analysis.expert_boundary import (
    STRAINS,
    bisected_crystals,
    ghost_force,
    ghost_force_report,
    mismatch,
    stress_jump,
)
from moe_md.checkpoint import Checkpoint
from moe_md.data.batching import frame_rows
from moe_md.data.reading import Frame
from moe_md.data.structures import fcc_slab, fcc_supercell
from moe_md.interfaces.ase import MixtureCalculator
from moe_md.neighbors.rows import image_pairs

SPECIES, CUTOFF, SIGMA, A0 = ("Pt", "C", "O"), 5.0, 2.5446, 3.92


def lennard_jones(epsilon: float, **kwargs):
    expert = experts.lennard_jones(SPECIES, CUTOFF, epsilon=epsilon, sigma=SIGMA, **kwargs)
    return expert, expert.init(None)


def two(first: float, second: float) -> Checkpoint:
    (a, p), (b, q) = lennard_jones(first), lennard_jones(second)
    return Checkpoint((a, b), (p, q), {}, {})


@pytest.mark.parametrize("name", ["100", "111", "sphere"])
def test_bisected_crystals_are_perfect_and_have_two_parts(name):
    frame, assignment = bisected_crystals("Pt", A0, CUTOFF)[name]
    assert set(assignment) == {0, 1}
    _, _, D = image_pairs(frame.positions, frame.cell, frame.pbc, 0.9 * A0)
    assert len(D) == 12 * len(frame.symbols)  # fcc everywhere, also across periodic boundaries
    np.testing.assert_allclose(np.linalg.norm(D, axis=1), A0 / np.sqrt(2), rtol=1e-12)
    if name != "sphere":
        i, j, _ = image_pairs(frame.positions, frame.cell, frame.pbc, CUTOFF)
        near = np.unique(i[assignment[i] != assignment[j]])
        assert 0 < len(near) < len(assignment)  # no atom has neighbours across both planes


@pytest.mark.parametrize("make", short(["lennard_jones", "power_spectrum"], only=["lennard_jones"]))
def test_identical_experts_have_no_ghost_force(make):
    if make == "lennard_jones":
        expert, params = lennard_jones(0.6)
    else:
        expert = experts.power_spectrum(SPECIES, CUTOFF, l_max=2, num_bessels=4, num_channels=4, hidden=(8,))
        params = expert.init(jax.random.key(0))
    for frame, assignment in bisected_crystals("Pt", A0, CUTOFF).values():
        ghost = ghost_force([expert, expert], [params, params], frame, assignment)
        assert ghost.max < 1e-12
        assert ghost.near.any()


def pair_sum(frame: Frame, assignment: np.ndarray, epsilons) -> np.ndarray:
    """Direct sum over pairs; the energy of a pair is the mean of its two atoms' experts."""
    i, j, D = image_pairs(frame.positions, frame.cell, frame.pbc, CUTOFF)
    r = np.linalg.norm(D, axis=1)
    onset = 0.8 * CUTOFF
    r2, o2, c2 = r**2, onset**2, CUTOFF**2
    switch = np.where(r < onset, 1.0, (c2 - r2) ** 2 * (c2 + 2 * r2 - 3 * o2) / (c2 - o2) ** 3)
    dswitch = np.where(r < onset, 0.0, 12 * r * (c2 - r2) * (o2 - r2) / (c2 - o2) ** 3)
    s6 = (SIGMA / r) ** 6
    value, slope = 4 * (s6**2 - s6), 4 * (-12 * s6**2 + 6 * s6) / r
    epsilon = 0.5 * (np.take(epsilons, assignment[i]) + np.take(epsilons, assignment[j]))
    dE_dr = epsilon * (slope * switch + value * dswitch)
    forces = np.zeros_like(frame.positions)
    np.add.at(forces, i, (dE_dr / r)[:, None] * D)
    return forces


@pytest.mark.parametrize("name", ["100", "111", "sphere"])
def test_ghost_force_of_lennard_jones_is_the_pair_sum(name):
    epsilons = (0.6, 0.5)
    checkpoint = two(*epsilons)
    frame, assignment = bisected_crystals("Pt", A0, CUTOFF)[name]
    ghost = ghost_force(checkpoint.experts, checkpoint.params, frame, assignment)
    expected = pair_sum(frame, assignment, epsilons)
    np.testing.assert_allclose(ghost.forces, expected, atol=1e-12)
    length = np.linalg.norm(expected, axis=1)
    assert ghost.max == pytest.approx(length.max())
    assert ghost.rms == pytest.approx(np.sqrt(np.mean(length[ghost.near] ** 2)))
    assert length[~ghost.near].max(initial=0.0) < 1e-12
    if name == "100":
        assert abs(expected[:, :2]).max() < 1e-12  # by symmetry along the normal


@pytest.mark.thorough
def test_report_agrees_with_single_calls():
    checkpoint = two(0.6, 0.5)
    report = ghost_force_report(checkpoint, [A0, 1.02 * A0])
    for name in ("100", "111", "sphere"):
        for k, a in enumerate((A0, 1.02 * A0)):
            frame, assignment = bisected_crystals("Pt", a, CUTOFF)[name]
            ghost = ghost_force(checkpoint.experts, checkpoint.params, frame, assignment)
            assert report[name]["max"][k] == pytest.approx(1000 * ghost.max)
            assert report[name]["rms"][k] == pytest.approx(1000 * ghost.rms)
    assert report["worst"] == max(max(report[name]["max"]) for name in ("100", "111", "sphere"))


def test_mismatch_marks_rows_outside_a_domain():
    full, cheap = lennard_jones(0.6), lennard_jones(0.5, allowed_species=("Pt",))
    slab = fcc_slab("Pt", A0, (2, 2, 6), vacuum=8.0)
    top = slab.positions[np.argmax(slab.positions[:, 2])]
    frame = Frame(
        np.vstack([slab.positions, top + np.array([0, 0, 1.9])]), (*slab.symbols, "C"), slab.cell, slab.pbc
    )
    rows = frame_rows(frame, SPECIES, CUTOFF, dtype=np.float64)
    found = mismatch([full[0], cheap[0]], [full[1], cheap[1]], rows)
    height = frame.positions[:, 2]
    assert not found.in_domain[-1] and not found.in_domain[height > top[2] - 0.1][:-1].all()
    assert found.in_domain[height < top[2] - CUTOFF].all()
    energy = np.asarray(full[0].atom_energies(full[1], rows))
    np.testing.assert_allclose(found.energy, energy * (0.1 / 0.6), atol=1e-12)
    assert (found.partial_force > 0).all()


def test_stress_jump_is_the_difference_of_ase_stresses():
    checkpoint = two(0.6, 0.5)
    lattice_constants = [0.98 * A0, A0, 1.02 * A0]
    report = stress_jump(checkpoint, lattice_constants)
    crystals = [(a, np.zeros((3, 3))) for a in lattice_constants] + [(A0, strain) for _, strain in STRAINS]
    found = [*report["isotropic"]["stress"], *report["strained"]["stress"]]
    pressures = [*report["isotropic"]["pressure"], *report["strained"]["pressure"]]
    for (a, strain), jump, pressure in zip(crystals, found, pressures, strict=True):
        stresses = []
        for region in (0, 1):
            atoms = bulk("Pt", a=a)
            atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
            atoms.calc = MixtureCalculator(checkpoint, region=region)
            stresses.append(atoms.get_stress(voigt=False) / GPa)
        np.testing.assert_allclose(jump, stresses[0] - stresses[1], atol=1e-9)
        assert pressure == pytest.approx(-np.trace(jump) / 3)
    assert report["worst"] == pytest.approx(np.abs(found).max()) and report["worst"] > 1.0
    assert report["worst_pressure"] == pytest.approx(np.abs(pressures).max())
    expert, params = lennard_jones(0.6)
    same = stress_jump(Checkpoint((expert, expert), (params, params), {}, {}), [A0])
    assert same["worst"] < 1e-12
    assert json.loads(json.dumps(report)) == report


def test_bad_input():
    checkpoint = two(0.6, 0.5)
    frame = fcc_supercell("Pt", A0, 1)
    with pytest.raises(ValueError, match="assignment must be a vector of 4 integers"):
        ghost_force(*checkpoint[:2], frame, np.zeros(3, int))
    with pytest.raises(ValueError, match="assignment must lie between 0 and 1, got 0 to 2"):
        ghost_force(*checkpoint[:2], frame, np.array([0, 1, 2, 0]))
    with pytest.raises(ValueError, match="at least 2 experts"):
        ghost_force_report(Checkpoint(checkpoint.experts[:1], checkpoint.params[:1], {}, {}), [A0])
    with pytest.raises(ValueError, match="at least 2 experts"):
        stress_jump(Checkpoint(checkpoint.experts[:1], checkpoint.params[:1], {}, {}), [A0])
    with pytest.raises(ValueError, match=r"lattice_constants must be positive .* got \[-1.0\]"):
        stress_jump(checkpoint, [-1.0])
