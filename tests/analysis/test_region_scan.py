"""The scan of regions: its forces are those of the mixture, errors vanish, and the choice of a region."""

import jax
import numpy as np
import pytest
from ase.build import bulk
from contract import randomized, small_allegro, small_power_spectrum
from jax_md import space

import moe_md as mm
from moe_md.analysis import region_scan
from moe_md.analysis.region_scan import Score
from moe_md.data.reading import frame_from_atoms
from moe_md.interfaces.ase import MixtureCalculator

SEEDS = [0, 20]
SECONDS = (8e-3, 1e-3)
N_ATOMS = 32
few_neighbors = mm.regions.coordination(5.2, 6.6, r_full=2.6, r_none=3.0)
REGIONS = {
    "around": mm.regions.around(SEEDS, 1.5, 1.8),
    "coordination": few_neighbors,
    "grown": mm.regions.grown(few_neighbors, 0.5, 1.5),
    "union": mm.regions.union(mm.regions.around([3], 1.0, 1.5), few_neighbors),
    "complement": mm.regions.complement(mm.regions.around(SEEDS, 1.5, 1.8)),
    "fixed": mm.regions.fixed(np.arange(N_ATOMS) % 2),
}


def pair(expert_of):
    experts = (small_allegro(l_max=1, num_layers=1), small_power_spectrum(l_max=1))
    experts = tuple(experts[n] for n in expert_of)
    return experts, tuple(randomized(e, n) for e, n in zip(experts, expert_of))


def structures():
    """Two rattled crystals of two species, whose numbers of neighbours differ."""
    for seed in range(2):
        atoms = bulk("Pt", a=3.9, cubic=True).repeat(2)
        atoms.symbols[::3] = "C"
        atoms.rattle(0.15, seed=seed)
        yield atoms


@pytest.fixture(scope="module")
def frames():
    experts, params = pair((0, 1))
    return region_scan.scan_frames(experts, params, list(map(frame_from_atoms, structures())))


@pytest.mark.parametrize("name", REGIONS)
def test_forces_are_those_of_the_ase_calculator(frames, name):
    experts, params = pair((0, 1))
    gates, forces = region_scan.forces(frames, REGIONS[name])
    calculator = MixtureCalculator(mm.Checkpoint(experts, params, {}, {}), REGIONS[name])
    for atoms, gate, force in zip(structures(), gates, forces):
        atoms.calc = calculator
        np.testing.assert_allclose(force, atoms.get_forces(), atol=1e-10)
        assert np.any(gate[:, 0] > 0) and np.any(gate[:, 1] > 0)
        if name != "fixed":
            assert np.any((gate > 0.01) & (gate < 0.99))


@pytest.mark.parametrize("name", ["grown", "around"])
def test_forces_are_those_of_dynamics(frames, name):
    experts, params = pair((0, 1))
    (atoms, _), region = structures(), REGIONS[name]
    box = atoms.cell.lengths()
    neighbor_fn, energy_fn = mm.mixture_neighbor_list(
        space.periodic(box)[0],
        box,
        mm.experts.potentials(experts, params),
        [experts[0].species.index(symbol) for symbol in atoms.symbols],
        region,
    )
    R = jax.numpy.asarray(atoms.positions)
    expected = -jax.jit(jax.grad(energy_fn))(R, neighbor_fn.allocate(R))
    np.testing.assert_allclose(region_scan.forces(frames, region)[1][0], expected, atol=1e-10)


def score(frames, region, selected=None):
    chosen = np.zeros((2, N_ATOMS), bool)
    chosen[:, SEEDS if selected is None else selected] = True
    return region_scan.score(frames, region, chosen, SECONDS)


def test_errors_vanish_where_all_atoms_are_inside(frames):
    scores = [score(frames, mm.regions.around(SEEDS, r, 1.0)) for r in (0.0, 3.0, 20.0)]
    errors = np.array([[s.error_selected, s.error_all, s.error_largest] for s in scores])
    assert np.all(errors[0] > 1e-2) and np.all(errors[1] > 0) and errors[-1].max() < 1e-12
    assert errors[1, 0] < errors[0, 0]
    assert np.all(errors[:2, 2] > errors[:2, 1])  # the largest is above the mean
    assert [s.speedup for s in scores] == sorted((s.speedup for s in scores), reverse=True)
    assert scores[-1].shares == (1.0, 0.0) and scores[-1].speedup == 1.0


def test_shares_and_the_bound_count_atoms_in_the_blend_twice(frames):
    region = mm.regions.fixed(np.where(np.arange(N_ATOMS) < 8, 0, 1))
    found = score(frames, region, [0])
    assert found.shares == (0.25, 0.75) and found.speedup == pytest.approx(8 / (0.25 * 8 + 0.75))
    shared = score(frames, REGIONS["around"])
    assert sum(shared.shares) > 1.0
    gates, forces = region_scan.forces(frames, REGIONS["around"])
    np.testing.assert_allclose(shared.shares, np.mean(gates > 0, axis=(0, 1)))
    difference = forces - np.asarray(frames.stored.force)
    assert shared.error_all == pytest.approx(np.sqrt(np.mean(difference**2)))
    assert shared.error_selected == pytest.approx(np.sqrt(np.mean(difference[:, SEEDS] ** 2)))


def test_equal_experts_have_no_error_in_any_region():
    experts, params = pair((1, 1))
    frames = region_scan.scan_frames(experts, params, list(map(frame_from_atoms, structures())))
    for region in REGIONS.values():
        assert score(frames, region).error_largest < 1e-12


def test_atoms_outside_the_domain_are_counted():
    experts, params = pair((0, 1))
    experts = (experts[0], experts[1]._replace(allowed_species=("Pt",)))
    frames = region_scan.scan_frames(experts, params, list(map(frame_from_atoms, structures())))
    everywhere, nowhere = (mm.regions.fixed(np.full(N_ATOMS, e)) for e in (1, 0))
    # Each atom of the crystal has carbon within the cutoff.
    assert score(frames, everywhere).out_of_domain == N_ATOMS and score(frames, nowhere).out_of_domain == 0


def test_selected_atoms_are_those_of_a_region(frames):
    selected = region_scan.selection(frames.inputs, REGIONS["fixed"], cutoff=frames.complete_within)
    np.testing.assert_array_equal(selected, np.tile(np.arange(N_ATOMS) % 2 == 0, (2, 1)))
    with pytest.raises(ValueError, match="selected must hold an atom"):
        region_scan.score(frames, REGIONS["fixed"], ~selected & selected, SECONDS)
    with pytest.raises(ValueError, match="seconds must be positive"):
        region_scan.score(frames, REGIONS["fixed"], selected, (1.0, 0.0))


def test_experts_that_pass_messages_are_refused():
    experts, params = pair((0, 1))
    experts = (experts[0], experts[1]._replace(num_hops=2))
    with pytest.raises(ValueError, match="must not pass messages"):
        region_scan.scan_frames(experts, params, list(map(frame_from_atoms, structures())))


def scores_of(*errors, speedups=None):
    speedups = speedups or range(10, 0, -1)
    return [Score((0.5, 0.5), s, error, 0.0, 0.0, 0.0) for s, error in zip(speedups, errors)]


@pytest.mark.parametrize(
    ("errors", "tolerance", "expected"),
    [
        ((0.3, 0.2, 0.1), 0.15, 2),
        ((0.3, 0.2, 0.1), 0.2, 1),
        ((0.3, 0.2, 0.1), 1.0, 0),
        ((0.3, 0.2, 0.1), 0.05, None),
        ((0.1, 0.3, 0.1), 0.15, 2),  # the first is small by chance
        ((0.1, 0.1, 0.3), 0.15, None),
        ((np.nan, 0.1), 0.15, 1),
        ((), 0.1, None),
    ],
)
def test_the_fastest_converged_region_is_recommended(errors, tolerance, expected):
    assert region_scan.recommended(scores_of(*errors), tolerance) == expected


def test_speed_decides_among_converged_regions():
    assert region_scan.recommended(scores_of(0.1, 0.1, 0.1, speedups=(2, 3, 1)), 0.2) == 1


def test_radii_are_round_and_few():
    assert region_scan.radii(5.0, 7.0) == (5.0, 5.5, 6.0, 6.5, 7.0)
    assert region_scan.radii(5.0, 5.0) == region_scan.radii(5.0, 4.0) == (5.0,)
    for stop in (0.05, 0.7, 3.3, 11.9, 47.0, 300.0):
        found = region_scan.radii(0.0, stop)
        assert 2 <= len(found) <= 7 and found[0] == 0.0 and found[-1] == pytest.approx(stop, abs=1e-3)
        assert np.all(np.diff(found) > 0)


def test_the_furthest_atom_is_at_its_nearest_image():
    frame = frame_from_atoms(bulk("Pt", a=4.0, cubic=True).repeat(2))
    selected = np.arange(N_ATOMS) == 0
    assert region_scan.furthest(frame, selected) == pytest.approx(4.0 * np.sqrt(3))
    assert region_scan.furthest(frame, np.ones(N_ATOMS, bool)) == pytest.approx(0.0, abs=1e-12)


def test_a_region_that_leaves_no_atom_outside_the_domain_comes_first():
    scores = [
        score._replace(out_of_domain=n)
        for score, n in zip(scores_of(0.1, 0.1, 0.1, speedups=(3, 2, 1)), (4, 0, 0))
    ]
    assert region_scan.recommended(scores, 0.2) == 1
    assert region_scan.recommended([s._replace(out_of_domain=1.0) for s in scores], 0.2) == 0
