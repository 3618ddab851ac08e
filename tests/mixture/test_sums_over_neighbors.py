"""An expert of sums over neighbours, straight from positions, is the same potential as its rows."""

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import close, randomized
from jax_md import space
from small_mixtures import crystal

from moe_md.experts import Potential
from moe_md.mixture import mixture_neighbor_list
from moe_md.mixture.neighbors import LANES
from moe_md.regions import around, fixed

POSITION, EDGES, SPECIES, OWNER = crystal()
COLUMNS = np.diag(EDGES) + np.array([[0.0, 0.4, -0.3], [0.0, 0.0, 0.5], [0.0, 0.0, 0.0]])
EXPERTS = (
    contract.small_density_moments(cutoff=2.7, num_radial=(3, 2), hidden=(4,)),
    contract.small_embedded_atom(cutoff=2.4),
)
STRAIN = np.eye(3) + 0.01 * np.array([[1.0, 0.3, -0.2], [0.1, -0.5, 0.2], [0.0, 0.4, 0.7]])


def built(experts, box, fractional, region, **kwargs):
    make = space.periodic_general if np.ndim(box) == 2 or fractional else space.periodic
    displacement_fn, _ = make(
        box, **({"fractional_coordinates": fractional} if make != space.periodic else {})
    )
    potentials = [Potential(e, randomized(e, k)) for k, e in enumerate(experts)]
    return mixture_neighbor_list(
        displacement_fn, box, potentials, SPECIES, region, fractional_coordinates=fractional, **kwargs
    )


@pytest.mark.parametrize(
    "box, fractional, region",
    [
        pytest.param(EDGES, False, fixed(OWNER), marks=pytest.mark.thorough),
        pytest.param(COLUMNS, False, around([4], 1.8, 1.5), marks=pytest.mark.thorough),
        (COLUMNS, True, around([4, 20], 1.2, 1.5)),
    ],
    ids=["fixed", "triclinic, around", "fractional, around"],
)
def test_it_is_the_same_potential(box, fractional, region):
    """Energies, forces, derivatives by strain and parameters, and second derivatives."""
    frame = np.diag(box) if np.ndim(box) == 1 else box
    fraction = POSITION @ np.linalg.inv(np.diag(EDGES)).T
    position = jnp.asarray(fraction if fractional else fraction @ frame.T)
    rng = np.random.default_rng(3)
    direction = jnp.asarray(rng.standard_normal(position.shape))

    def everything(experts):
        neighbor_fn, energy_fn = built(experts, box, fractional, region)
        neighbors = neighbor_fn.allocate(position)
        params = [randomized(e, k) for k, e in enumerate(experts)]

        def energy(R, params, strain):
            return energy_fn(R, neighbors, params=params, perturbation=strain)

        @jax.jit
        def compute(R, params, strain):
            gradient = jax.grad(energy, (0, 1, 2))
            force_loss = lambda R, params: jnp.sum(jax.grad(energy)(R, params, strain) ** 2)  # noqa: E731
            return {
                "energy": energy(R, params, strain),
                "first": gradient(R, params, strain),
                "forward": jax.jvp(lambda R: energy(R, params, strain), (R,), (direction,))[1],
                "hessian": jax.jvp(lambda R: gradient(R, params, strain)[0], (R,), (direction,))[1],
                "force loss": jax.grad(force_loss, (0, 1))(R, params),
            }

        return neighbors, compute(position, params, jnp.asarray(STRAIN))

    neighbors, found = everything(EXPERTS)
    plain, expected = everything([e._replace(neighbor_sums=None) for e in EXPERTS])
    assert all(rows is not None for rows in neighbors.rows_of_sums) and plain.rows_of_sums == (None, None)
    for key in expected:
        for a, b in zip(jax.tree.leaves(found[key]), jax.tree.leaves(expected[key]), strict=True):
            close(a, b, 1e-10)
    assert float(jnp.abs(expected["hessian"]).max()) > 1e-3


def test_neighbours_follow_the_list():
    """Rows are made anew where the list is, or where the centres change, and at no other step."""
    region = around([4], 1.8, 1.5)
    neighbor_fn, energy_fn = built(EXPERTS, EDGES, False, region)
    neighbors = neighbor_fn.allocate(jnp.asarray(POSITION))
    update = jax.jit(lambda n, R: n.update(R))
    near = POSITION + 0.01 * np.random.default_rng(0).standard_normal(POSITION.shape)
    kept = update(neighbors, jnp.asarray(near))
    for old, new in zip(neighbors.rows_of_sums, kept.rows_of_sums):
        np.testing.assert_array_equal(new, old)
    far = POSITION.copy()
    far[4] += [1.0, 0.9, 0.8]
    moved = update(kept, jnp.asarray(far))
    assert not bool(moved.did_buffer_overflow)
    assert any(bool(jnp.any(a != b)) for a, b in zip(moved.rows_of_sums, kept.rows_of_sums))
    fresh = neighbor_fn.allocate(jnp.asarray(far))
    close(energy_fn(jnp.asarray(far), moved), energy_fn(jnp.asarray(far), fresh), 1e-12)


def test_too_few_slots_are_told():
    """A denser crystal than the one that rows were allocated for."""
    neighbor_fn, _ = built(EXPERTS, EDGES, True, fixed(OWNER))
    fraction = jnp.asarray(POSITION / EDGES)
    neighbors = neighbor_fn.allocate(fraction, box=jnp.asarray(EDGES))
    rows = [r.shape[1] for r in neighbors.rows_of_sums]
    assert rows == list(neighbors.max_neighbors)
    assert all(n % LANES == 0 for n in rows)  # also where a list has fewer columns
    dense = neighbor_fn.update(fraction, neighbors, box=jnp.asarray(0.88 * EDGES), renew=True)
    assert bool(dense.did_buffer_overflow)


def test_forces_of_a_species_outside_the_domain_are_zero():
    """Neighbours of other species are ignored, as in the rows."""
    only = contract.small_density_moments(("Pt",), cutoff=2.7, num_radial=(3, 2), hidden=(4,))
    params = randomized(only)
    displacement_fn, _ = space.periodic(EDGES)
    neighbor_fn, energy_fn = mixture_neighbor_list(
        displacement_fn, EDGES, [Potential(only, params)], SPECIES, fixed(np.zeros(len(SPECIES), int), 1)
    )
    with pytest.warns(UserWarning, match="outside its domain"):
        neighbors = neighbor_fn.allocate(jnp.asarray(POSITION))
    forces = -jax.grad(energy_fn)(jnp.asarray(POSITION), neighbors)
    plain, energy_of_rows = mixture_neighbor_list(
        displacement_fn,
        EDGES,
        [Potential(only._replace(neighbor_sums=None), params)],
        SPECIES,
        fixed(np.zeros(len(SPECIES), int), 1),
    )
    with pytest.warns(UserWarning, match="outside its domain"):
        neighbors = plain.allocate(jnp.asarray(POSITION))
    close(forces, -jax.grad(energy_of_rows)(jnp.asarray(POSITION), neighbors), 1e-11)
