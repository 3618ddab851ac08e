"""Atoms that change hands at once: work is booked, and nothing else changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_md import space
from trajectories import run_from

import moe_md as mm
from moe_md import simulate
from moe_md.regions import around, fixed, reassigned
from moe_md.reporters.restart import Restart, load_restart

LATTICE = 2.2  # Å, of a simple cubic crystal with 8 x 7 x 6 atoms
CUBIC = np.stack(np.meshgrid(*(np.arange(n) for n in (8, 7, 6)), indexing="ij"), -1).reshape(-1, 3) * LATTICE
EDGES = LATTICE * np.array([8.0, 7.0, 6.0])
EXPERT = mm.experts.lennard_jones(("Pt",), 3.2, epsilon=0.4, sigma=1.9)
FLUIDS = [{"epsilon": jnp.asarray(e), "sigma": jnp.asarray(1.9)} for e in (0.4, 0.3)]
REGION = reassigned(around([40, 300], 3.0, 1.0))
DISPLACEMENT, SHIFT = space.periodic(EDGES)


@pytest.fixture(scope="module")
def crystal():
    return mm.mixture_neighbor_list(
        DISPLACEMENT,
        EDGES,
        mm.experts.potentials((EXPERT, EXPERT), FLUIDS),
        np.zeros(len(CUBIC), int),
        REGION.region,
    )


def run(crystal, n_steps, timestep_fs=2.0, **kwargs):
    beginning = dict(
        position=jnp.asarray(CUBIC),
        masses=np.full(len(CUBIC), 40.0),
        temperature_K=1500.0,
        key=jax.random.key(0),
    )
    given = dict(region=REGION, reassign_every=10, chunk_steps=25) | kwargs
    return run_from(
        *crystal,
        simulate.nve(SHIFT, timestep_fs),
        n_steps=n_steps,
        **(given if "state" in kwargs else beginning | given),
    )


def test_all_of_an_atom_to_the_expert_that_has_most():
    blend = REGION.region.gate(jnp.asarray(CUBIC), DISPLACEMENT)
    region = REGION.assigned(jnp.asarray(CUBIC), DISPLACEMENT)
    gate = np.asarray(region.gate(jnp.asarray(CUBIC), DISPLACEMENT))
    assert set(gate.ravel()) == {0.0, 1.0} and (gate.sum(axis=1) == 1).all()
    assert (gate[:, 0] == (blend[:, 0] >= 0.5)).all() and 0 < gate[:, 0].sum() < len(gate)
    later = region.gate(jnp.asarray(CUBIC) + 1.0 * np.arange(len(CUBIC))[:, None], DISPLACEMENT)
    assert (np.asarray(later) == gate).all()


def test_energy_less_work_is_conserved(crystal):
    """The work is much, and what is left without it shrinks with the square of the time step."""
    left = []
    for timestep_fs in (2.0, 1.0):
        log = run(
            crystal,
            int(1200 / timestep_fs),
            timestep_fs,
            reassign_every=int(40 / timestep_fs),
            chunk_steps=int(20 / timestep_fs),
        ).log
        assert np.abs(log.work).max() > 1.0 and len(set(log.work)) > 10
        left.append(np.ptp(log.conserved))
        assert np.allclose(log.conserved, log.total - log.work) and np.ptp(log.total) > 5 * left[-1]
    assert 3 < left[0] / left[1] < 5


def test_work_is_the_difference_of_the_experts_on_atoms_that_changed_hands(crystal):
    neighbor_fn, _ = crystal
    result = run(crystal, 60)
    state, moved = result.state, run(crystal, 1, state=result.state, neighbors=result.neighbors)
    new = neighbor_fn.assign(state.position, result.neighbors, REGION).gates
    assert (np.asarray(state.gates) != np.asarray(new)).any() and (new == moved.state.gates).all()
    energies = []
    for e in (0, 1):
        owner = fixed(np.full(len(CUBIC), e), 2)
        energies.append(
            neighbor_fn.parts(
                state.position, neighbor_fn.allocate(state.position, region=owner), region=owner
            ).energy[:, e]
        )
    expected = jnp.sum((new - state.gates) * jnp.stack(energies, axis=1))
    assert moved.state.work - state.work == pytest.approx(float(expected), abs=1e-9)
    assert abs(float(expected)) > 1e-3


def test_a_run_goes_on_bit_for_bit(crystal, tmp_path):
    whole = run(crystal, 100)
    first = run(crystal, 50, reporters=[Restart(tmp_path / "restart")])
    fresh = run(crystal, 0)
    state, neighbors = load_restart(tmp_path / "restart", fresh.state, fresh.neighbors)
    assert state.step == 50 and state.work == first.state.work
    second = run(crystal, 50, state=state, neighbors=neighbors)
    assert (np.asarray(second.state.position) == np.asarray(whole.state.position)).all()
    assert second.state.work == whole.state.work and second.log.conserved[-1] == whole.log.conserved[-1]


def test_frames_come_as_often_as_asked(crystal):
    assert run(crystal, 60).log.step.tolist() == [0, 25, 50, 60]


def test_rows_that_run_out_are_healed():
    """From a few atoms in small spheres to many in large ones, in a run that goes on with the old lists."""
    small, large = (around([40, 300], r, 1.0) for r in (0.5, 3.0))
    fns = mm.mixture_neighbor_list(
        DISPLACEMENT, EDGES, mm.experts.potentials((EXPERT, EXPERT), FLUIDS), np.zeros(len(CUBIC), int), small
    )
    start = run(fns, 0, region=reassigned(small))
    state = start.state._replace(gates=None)
    roomy = run(fns, 5, state=state, region=reassigned(large))
    healed = run(fns, 5, state=state, neighbors=start.neighbors, region=reassigned(large))
    assert healed.state.n_reallocations > roomy.state.n_reallocations
    assert np.allclose(healed.state.position, roomy.state.position, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"region": None},
            "region must be of regions.reassigned, got None",
        ),
        ({"region": REGION.region}, "region must be of regions.reassigned"),
        ({"reassign_every": 0}, "reassign_every must be a whole number, at least 1, got 0"),
    ],
)
def test_bad_input(crystal, change, message):
    with pytest.raises(ValueError, match=message):
        run(crystal, 10, **change)


def test_no_region_is_refused(crystal):
    with pytest.raises(ValueError, match="region must have the methods gate"):
        reassigned(3)
    with pytest.raises(ValueError, match="reassign_every must be a whole number, at least 1, got None"):
        run(crystal, 10, reassign_every=None)
    with pytest.raises(ValueError, match="region must have assigned its atoms"):
        REGION.gate(jnp.asarray(CUBIC), DISPLACEMENT)
