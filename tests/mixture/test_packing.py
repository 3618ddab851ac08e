"""Rows without skin, for experts whose slots are dear: nothing changes but the cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk
from jax_md import space
from trajectories import run_from

import moe_md as mm
from moe_md import simulate
from moe_md.neighbors.images import nearest_images
from moe_md.neighbors.rows import max_occupancy, rows_from_neighbor_list, rows_within_cutoff

CUTOFF = 3.6  # Å: 12 neighbours, and 6 more within the skin of 0.6
ALLEGRO = mm.experts.allegro(
    ("Pt",),
    CUTOFF,
    l_max=1,
    num_layers=1,
    num_scalar_features=8,
    num_tensor_features=4,
    scalar_embed_mlp=(8,),
    allegro_mlp=(8,),
    avg_num_neighbors=12.0,
)
CHEAP = mm.experts.lennard_jones(("Pt",), CUTOFF, epsilon=0.6, sigma=2.5446)


def crystal(experts=(ALLEGRO, CHEAP), **options):
    atoms = bulk("Pt", cubic=True, a=3.97) * 3
    displacement_fn, shift_fn = space.periodic(jnp.asarray(atoms.cell.lengths()))
    params = [e.init(jax.random.key(0)) for e in experts]
    region = mm.regions.slab(atoms.positions, lower=5.0)
    fns = mm.mixture_neighbor_list(
        displacement_fn,
        atoms.cell.lengths(),
        mm.experts.potentials(experts, params),
        np.zeros(len(atoms), int),
        region,
        dr_threshold=0.6,
        **options,
    )
    return atoms, displacement_fn, shift_fn, *fns


def rattled(atoms, size=0.1):
    return jnp.asarray(
        atoms.positions + size * np.random.default_rng(0).standard_normal(atoms.positions.shape)
    )


def test_rows_hold_what_is_near_and_nothing_else():
    atoms, displacement_fn, _, neighbor_fn, _ = crystal()
    R, species = rattled(atoms), jnp.zeros(len(atoms), int)
    idx = neighbor_fn.allocate(R).idx
    centers = jnp.asarray([3, 7, len(atoms), 50])
    images = nearest_images(atoms.cell.array.T)
    rows, fullest = rows_within_cutoff(R, species, idx, displacement_fn, centers, images, CUTOFF, 16)
    D = space.map_product(displacement_fn)(R, R)
    distance = np.linalg.norm(np.asarray(D), axis=-1)
    for row, center in enumerate(np.asarray(centers)):
        found = set(np.asarray(rows.neighbor[row])[np.asarray(rows.mask[row])].tolist())
        near = (
            set()
            if center == len(atoms)
            else set(np.flatnonzero((distance[center] < CUTOFF) & (distance[center] > 0)).tolist())
        )
        assert found == near
    within = np.sum((distance < CUTOFF) & (distance > 0), axis=1)
    assert int(fullest) == within[[3, 7, 50]].max() == int(max_occupancy(R, idx, images, centers, CUTOFF))
    wide = rows_from_neighbor_list(R, species, idx, displacement_fn, centers)
    assert int(jnp.sum(wide.mask)) > int(jnp.sum(rows.mask)) > 0
    assert int(max_occupancy(R, idx, images, centers[:0], CUTOFF)) == 0


def test_energy_and_forces_are_those_of_whole_rows():
    atoms, *_, neighbor_fn, energy_fn = crystal()
    plain_fn, plain_energy = crystal((ALLEGRO._replace(pack_neighbors=False), CHEAP))[3:]
    # Compiled whole: eagerly, each operation is a program of its own.
    slope, plain_slope = (jax.jit(jax.value_and_grad(f)) for f in (energy_fn, plain_energy))
    R = rattled(atoms)
    neighbors, whole = neighbor_fn.allocate(R), plain_fn.allocate(R)
    assert whole.max_neighbors == (None, None) and neighbors.max_neighbors[1] is None
    assert 12 <= neighbors.max_neighbors[0] < neighbors.idx.shape[1]
    moved = R + 0.05 * np.sin(np.arange(R.size)).reshape(R.shape)  # within the skin, and the list not updated
    for place in (R, moved):
        a, b = slope(place, neighbors), plain_slope(place, whole)
        np.testing.assert_allclose(a[0], b[0], rtol=1e-13)
        np.testing.assert_allclose(a[1], b[1], atol=1e-13)
        assert float(jnp.abs(a[1]).max()) > 0.01

    def curve(f, nbrs):
        return jax.jit(lambda R: jax.jvp(jax.grad(lambda R: f(R, nbrs)), (R,), (R,))[1])(R)

    np.testing.assert_allclose(curve(energy_fn, neighbors), curve(plain_energy, whole), atol=1e-11)


def test_slots_that_run_out_are_told_and_healed():
    atoms, displacement_fn, shift_fn, neighbor_fn, energy_fn = crystal(capacity_multiplier=1.0)
    R = jnp.asarray(atoms.positions)
    neighbors = neighbor_fn.allocate(R)
    assert neighbors.max_neighbors[0] == 12
    # An atom of the expensive expert goes among its neighbours: some of them then have 13.
    energy_fn = jax.jit(energy_fn)
    top = int(jnp.argmax(R[:, 2]))
    moved = R.at[top].add(jnp.asarray([0.8, 0.3, 0.0]))
    assert bool(jnp.isnan(energy_fn(moved, neighbors)))
    assert bool(jnp.isnan(jax.jit(jax.grad(energy_fn))(moved, neighbors)).all())
    told = neighbors.update(moved)
    assert bool(told.did_buffer_overflow) and int(told.error) & 256
    healed = neighbor_fn.allocate(moved)
    assert healed.max_neighbors[0] > 12 and bool(jnp.isfinite(energy_fn(moved, healed)))


@pytest.mark.thorough
def test_a_run_outgrows_its_slots():
    atoms, _, shift_fn, neighbor_fn, energy_fn = crystal(capacity_multiplier=1.0)
    start = dict(masses=atoms.get_masses(), temperature_K=900.0, key=jax.random.key(0))
    frames = []
    result = run_from(
        neighbor_fn,
        energy_fn,
        simulate.nve(shift_fn, 2.0),
        jnp.asarray(atoms.positions),
        n_steps=100,
        reporters=[frames.append],
        **start,
    )
    assert result.log.n_reallocations[-1] >= 1
    assert np.abs(result.log.total - result.log.total[0]).max() < 0.02
    found = -jax.grad(energy_fn)(result.state.position, neighbor_fn.allocate(result.state.position))
    np.testing.assert_allclose(frames[-1].force, found, atol=1e-10)


def test_positions_that_are_not_numbers_are_not_hidden():
    atoms, *_, neighbor_fn, energy_fn = crystal()
    R = rattled(atoms)
    assert bool(jnp.isnan(energy_fn(R.at[5, 0].set(jnp.nan), neighbor_fn.allocate(R))))


@pytest.mark.parametrize("builder, dear", [("allegro", True), ("power_spectrum", False)])
def test_which_experts_ask_for_it(builder, dear):
    assert getattr(mm.experts, builder)(("Pt",), 4.0).pack_neighbors is dear
