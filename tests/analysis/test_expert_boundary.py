"""Ghost forces in several crystals, against pair sums and gradients of ASE's calculator; stress jumps."""

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
from moe_md.data.reading import Frame, frame_from_atoms, frame_to_atoms
from moe_md.data.structures import fcc_slab
from moe_md.interfaces.ase import MixtureCalculator
from moe_md.neighbors.rows import image_pairs

SPECIES, CUTOFF, SIGMA, A0 = ("Pt", "C", "O"), 5.0, 2.5446, 3.92
PLATINUM = bulk("Pt", a=A0)
CRYSTALS = {  # of elements that the experts know
    "fcc": PLATINUM,
    "bcc": bulk("Pt", "bcc", a=3.16),
    "diamond": bulk("Pt", "diamond", a=5.9),
    "hcp": bulk("Pt", "hcp", a=2.8, c=4.6),
    "rocksalt": bulk("CO", "rocksalt", a=4.6),
}
PLANES = {  # the two most widely spaced ones
    "fcc": ["111", "100"],
    "bcc": ["110", "100"],
    "diamond": ["111", "100"],
    "hcp": ["001", "100"],
    "rocksalt": ["111", "100"],
}


def lennard_jones(epsilon: float, **kwargs):
    expert = experts.lennard_jones(SPECIES, CUTOFF, epsilon=epsilon, sigma=SIGMA, **kwargs)
    return expert, expert.init(None)


def two(first: float, second: float) -> Checkpoint:
    (a, p), (b, q) = lennard_jones(first), lennard_jones(second)
    return Checkpoint((a, b), (p, q), {}, {})


def first_distances(frame: Frame, n: int) -> np.ndarray:
    """`[n_atoms, n]` Å, the shortest distances of each atom."""
    i, _, D = image_pairs(frame.positions, frame.cell, frame.pbc, CUTOFF)
    length = np.linalg.norm(D, axis=1)
    return np.array([np.sort(length[i == k])[:n] for k in range(len(frame.symbols))])


@pytest.mark.parametrize("crystal", CRYSTALS)
def test_bisected_crystals_are_perfect_and_have_two_parts(crystal):
    cuts = bisected_crystals(CRYSTALS[crystal], CUTOFF)
    assert list(cuts) == [*PLANES[crystal], "sphere"]
    perfect = np.unique(first_distances(frame_from_atoms(CRYSTALS[crystal]), 12).round(6), axis=0)
    for name, (frame, assignment) in cuts.items():
        assert set(assignment) == {0, 1}
        # The same neighbours everywhere, also across periodic boundaries.
        some = np.random.default_rng(0).permutation(len(assignment))[:60]
        distances = first_distances(frame, 12)[some]
        np.testing.assert_allclose(distances, np.broadcast_to(perfect[0], distances.shape), atol=1e-5)
        i, j, _ = image_pairs(frame.positions, frame.cell, frame.pbc, CUTOFF)
        near = np.unique(i[assignment[i] != assignment[j]])
        assert 0 < len(near) < len(assignment)
        if name == "sphere":
            inside = frame.positions[assignment == 0]
            assert np.linalg.norm(inside[:, None] - inside, axis=-1).max() < 2 * CUTOFF
            assert (1 / np.linalg.norm(np.linalg.inv(frame.cell), axis=0) >= 4 * CUTOFF - 1e-6).all()
        else:
            # No atom has neighbours across both planes; each part is one layer.
            assert len(near) < len(assignment)
            height = frame.positions @ np.linalg.inv(frame.cell)[:, 2] % 1.0
            np.testing.assert_array_equal(assignment, height > 0.5)
            thickness = 0.5 / np.linalg.norm(np.linalg.inv(frame.cell)[:, 2])
            assert thickness >= 2 * CUTOFF


@pytest.mark.parametrize("make", short(["lennard_jones", "power_spectrum"], only=["lennard_jones"]))
def test_identical_experts_have_no_ghost_force(make):
    if make == "lennard_jones":
        expert, params = lennard_jones(0.6)
    else:
        expert = experts.power_spectrum(SPECIES, CUTOFF, l_max=2, num_bessels=4, num_channels=4, hidden=(8,))
        params = expert.init(jax.random.key(0))
    for frame, assignment in bisected_crystals(PLATINUM, CUTOFF).values():
        ghost = ghost_force([expert, expert], [params, params], frame, assignment)
        assert ghost.max < 1e-12
        assert ghost.near.any()
    # Displaced atoms feel forces, but none of a boundary.
    frame, assignment = bisected_crystals(PLATINUM, CUTOFF)["111"]
    moved = np.random.default_rng(0).normal(scale=0.05, size=frame.positions.shape)
    frame = frame._replace(positions=frame.positions + moved)
    assert ghost_force([expert, expert], [params, params], frame, assignment).max < 1e-12


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
    frame, assignment = bisected_crystals(PLATINUM, CUTOFF)[name]
    ghost = ghost_force(checkpoint.experts, checkpoint.params, frame, assignment)
    expected = pair_sum(frame, assignment, epsilons)
    np.testing.assert_allclose(ghost.forces, expected, atol=1e-12)
    length = np.linalg.norm(expected, axis=1)
    assert ghost.max == pytest.approx(length.max())
    assert ghost.rms == pytest.approx(np.sqrt(np.mean(length[ghost.near] ** 2)))
    assert length[~ghost.near].max(initial=0.0) < 1e-12
    if name == "100":
        assert abs(expected[:, :2]).max() < 1e-12  # by symmetry along the normal


@pytest.mark.parametrize("crystal", ["diamond", "rocksalt"])
def test_ghost_force_is_what_the_boundary_adds_to_the_gradient_of_the_energy(crystal):
    """Sheared crystals, in whose diamond atoms are not at rest; forces from ASE's calculator."""
    checkpoint = two(0.6, 0.5)
    atoms = CRYSTALS[crystal].copy()
    shear = np.eye(3) + 0.02 * np.array([[0, 1, 0.5], [1, 0, 0.3], [0.5, 0.3, 0]])
    atoms.set_cell(atoms.cell.array @ shear, scale_atoms=True)
    (frame, assignment), *_ = bisected_crystals(atoms, CUTOFF, 1).values()
    ghost = ghost_force(checkpoint.experts, checkpoint.params, frame, assignment)
    whole = frame_to_atoms(frame)
    forces = []
    for region in (assignment, 0, 1):
        whole.calc = MixtureCalculator(checkpoint, region=region)
        forces.append(whole.get_forces())
    mixed, *alone = forces
    own = np.choose(assignment[:, None], alone)
    assert (np.abs(own).max() > 0.01) == (crystal == "diamond")
    np.testing.assert_allclose(ghost.forces, mixed - own, atol=1e-9)
    assert ghost.max > 1e-3 and np.abs(ghost.forces[~ghost.near]).max(initial=0.0) < 1e-12


@pytest.mark.thorough
def test_report_agrees_with_single_calls():
    checkpoint = two(0.6, 0.5)
    report = ghost_force_report(checkpoint, PLATINUM, [0.0, 0.02])
    assert report["strains"] == [0.0, 0.02]
    for name in ("100", "111", "sphere"):
        for k, a in enumerate((A0, 1.02 * A0)):
            frame, assignment = bisected_crystals(bulk("Pt", a=a), CUTOFF)[name]
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
    strains = [-0.02, 0.0, 0.02]
    hexagonal = CRYSTALS["hcp"]
    report = stress_jump(checkpoint, hexagonal, strains)
    tensors = [strain * np.eye(3) for strain in strains] + [strain for _, strain in STRAINS]
    found = [*report["isotropic"]["stress"], *report["strained"]["stress"]]
    pressures = [*report["isotropic"]["pressure"], *report["strained"]["pressure"]]
    for strain, jump, pressure in zip(tensors, found, pressures, strict=True):
        stresses = []
        for region in (0, 1):
            atoms = hexagonal.copy()
            atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
            atoms.calc = MixtureCalculator(checkpoint, region=region)
            stresses.append(atoms.get_stress(voigt=False) / GPa)
        np.testing.assert_allclose(jump, stresses[0] - stresses[1], atol=1e-9)
        assert pressure == pytest.approx(-np.trace(jump) / 3)
    assert report["worst"] == pytest.approx(np.abs(found).max()) and report["worst"] > 1.0
    assert report["worst_pressure"] == pytest.approx(np.abs(pressures).max())
    expert, params = lennard_jones(0.6)
    same = stress_jump(Checkpoint((expert, expert), (params, params), {}, {}), hexagonal)
    assert same["worst"] < 1e-12
    assert json.loads(json.dumps(report)) == report


def test_bad_input():
    checkpoint = two(0.6, 0.5)
    frame = frame_from_atoms(bulk("Pt", a=A0, cubic=True))
    with pytest.raises(ValueError, match="assignment must be a vector of 4 integers"):
        ghost_force(*checkpoint[:2], frame, np.zeros(3, int))
    with pytest.raises(ValueError, match="assignment must lie between 0 and 1, got 0 to 2"):
        ghost_force(*checkpoint[:2], frame, np.array([0, 1, 2, 0]))
    with pytest.raises(ValueError, match="at least 2 experts"):
        ghost_force_report(Checkpoint(checkpoint.experts[:1], checkpoint.params[:1], {}, {}), PLATINUM)
    with pytest.raises(ValueError, match="at least 2 experts"):
        stress_jump(Checkpoint(checkpoint.experts[:1], checkpoint.params[:1], {}, {}), PLATINUM)
    for strains in ([-1.0], []):
        with pytest.raises(ValueError, match=r"strains must be relative changes of length .* got \["):
            stress_jump(checkpoint, PLATINUM, strains)
    with pytest.raises(ValueError, match="n must be between 1 and"):
        ghost_force_report(checkpoint, PLATINUM, n_planes=0)
