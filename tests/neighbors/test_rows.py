"""Every list against brute force over images."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk, molecule
from jax_md import space

from moe_md.neighbors.rows import image_pairs, rows_from_images, rows_from_neighbor_list


def brute_force(position, cell, pbc, cutoff):
    """Sorted (centre, neighbour, displacement) of all images within a generous range."""
    cell, position = np.asarray(cell, float), np.asarray(position, float)
    reach = np.zeros(3, int)
    periodic = np.flatnonzero(pbc)
    if len(periodic):
        spread = np.ptp(position, axis=0).max() * np.sqrt(3)
        # The dual vectors of the periodic lattice bound how far images matter.
        dual = np.linalg.norm(np.linalg.pinv(cell[periodic]), axis=0)
        reach[periodic] = np.ceil(dual * (cutoff + spread)).astype(int) + 1
    found = []
    for shift in itertools.product(*(range(-r, r + 1) for r in reach)):
        D = position[None] - position[:, None] + np.array(shift) @ cell
        near = np.linalg.norm(D, axis=-1) < cutoff
        if not any(shift):
            np.fill_diagonal(near, False)
        found += [(a, b, *D[a, b]) for a, b in zip(*np.nonzero(near))]
    return in_order(np.array(found).reshape(-1, 5))


def in_order(pairs):
    rounded = np.round(pairs, 6) + 0.0
    return pairs[np.lexsort(rounded.T[::-1])]


def rng():
    return np.random.default_rng(0)


def fcc_primitive():
    atoms = bulk("Pt", "fcc", a=3.98)
    return atoms.positions, atoms.cell.array, (True, True, True)


def fcc_rattled():
    atoms = bulk("Pt", "fcc", a=3.98, cubic=True)
    return atoms.positions + 0.1 * rng().standard_normal((4, 3)), atoms.cell.array, (True, True, True)


def triclinic():
    cell = np.array([[3.1, 0.0, 0.0], [1.9, 3.4, 0.0], [-1.2, 0.8, 3.0]])
    return rng().uniform(-4.0, 4.0, (3, 3)), cell, (True, True, True)


def left_handed():
    cell = np.array([[3.1, 0.0, 0.0], [0.9, 3.4, 0.0], [0.3, 0.8, -3.0]])
    return rng().uniform(0.0, 3.0, (3, 3)), cell, (True, True, True)


def slab_outside_cell():
    position = rng().uniform(0.0, 5.0, (6, 3)) + np.array([-9.0, 0.0, 40.0])
    return position, np.array([[5.0, 0.0, 0.0], [2.5, 4.3, 0.0], [1.0, 1.0, 9.0]]), (True, True, False)


def slab_without_third_vector():
    cell = np.array([[5.0, 0.0, 0.0], [2.5, 4.3, 0.0], [0.0, 0.0, 0.0]])
    return rng().uniform(0.0, 5.0, (6, 3)), cell, (True, True, False)


def flat_layer():
    return np.zeros((1, 3)), np.diag([2.8, 2.8, 0.0]), (True, True, False)


def wire():
    cell = np.array([[0.0, 0.0, 0.0], [0.2, 3.5, 0.1], [0.0, 0.0, 0.0]])
    return rng().uniform(-3.0, 3.0, (4, 3)), cell, (False, True, False)


def free_molecule():
    atoms = molecule("CO")
    return atoms.positions - 30.0, np.zeros((3, 3)), (False, False, False)


def molecule_in_small_box():
    return rng().uniform(-8.0, 8.0, (8, 3)), np.eye(3), (False, False, False)


SYSTEMS = (
    fcc_primitive,
    fcc_rattled,
    triclinic,
    left_handed,
    slab_outside_cell,
    slab_without_third_vector,
    flat_layer,
    wire,
    free_molecule,
    molecule_in_small_box,
)


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("cutoff", [3.0, 5.0])
def test_image_pairs_agree_with_brute_force(system, cutoff):
    position, cell, pbc = system()
    i, j, D = image_pairs(position, cell, pbc, cutoff)
    expected = brute_force(position, cell, pbc, cutoff)
    assert (np.diff(i) >= 0).all()
    np.testing.assert_allclose(in_order(np.column_stack([i, j, D])), expected, atol=1e-9)


def test_fcc_shells_have_the_known_numbers():
    position, cell, pbc = fcc_primitive()
    assert [len(image_pairs(position, cell, pbc, r)[0]) for r in (3.0, 4.1, 5.0)] == [12, 18, 42]


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda f: f.__name__)
def test_rows_hold_the_pairs(system):
    position, cell, pbc = system()
    species = np.arange(len(position)) % 2
    rows = rows_from_images(position, species, cell, pbc, 5.0, max_neighbors=300)
    n_atoms = len(position)
    centre, slot = np.nonzero(rows.mask)
    j = rows.neighbor[centre, slot]
    pairs = np.column_stack([centre, j, rows.displacement[centre, slot]])
    np.testing.assert_allclose(in_order(pairs), brute_force(position, cell, pbc, 5.0), atol=1e-9)
    np.testing.assert_array_equal(rows.center_species, species)
    np.testing.assert_array_equal(rows.neighbor_species[rows.mask], species[j])
    assert (rows.neighbor[~rows.mask] == n_atoms).all()
    assert (rows.displacement[~rows.mask] == 1.0).all()


def test_rows_of_some_centers():
    position, cell, pbc = fcc_rattled()
    whole = rows_from_images(position, np.zeros(4, int), cell, pbc, 4.0, max_neighbors=40)
    some = rows_from_images(position, np.zeros(4, int), cell, pbc, 4.0, max_neighbors=40, centers=[2, 0])
    for a, b in zip(whole, some):
        np.testing.assert_array_equal(a[[2, 0]], b)


def test_one_atom_is_its_own_neighbour():
    position, cell, pbc = fcc_primitive()
    rows = rows_from_images(position, np.zeros(1, int), cell, pbc, 3.0)
    assert rows.mask.sum() == 12
    assert (rows.neighbor[rows.mask] == 0).all()


@pytest.mark.parametrize(
    "position, cell, pbc, message",
    [
        ([[0.0, 0.0, np.nan]], np.eye(3), (True,) * 3, "position must be finite"),
        ([[0.0, 0.0, 0.0]], np.diag([3.0, 3.0, 0.0]), (True,) * 3, "lattice vector along each periodic"),
        ([[0.0, 0.0, 0.0]], np.ones((3, 3)), (True,) * 3, "independent"),
        (np.zeros((2, 3)), 9.0 * np.eye(3), (True,) * 3, "at one place, got atoms 0 and 1"),
    ],
)
def test_broken_structures_are_refused(position, cell, pbc, message):
    with pytest.raises(ValueError, match=message):
        image_pairs(position, cell, pbc, 3.0)


def test_too_few_slots_are_refused():
    position, cell, pbc = fcc_primitive()
    with pytest.raises(ValueError, match="max_neighbors must be at least 12"):
        rows_from_images(position, np.zeros(1, int), cell, pbc, 3.0, max_neighbors=11)


def test_rows_from_neighbor_list_have_finite_gradients():
    # A cluster with padded slots: only zeroing them *before* a norm keeps the gradient finite.
    displacement_fn, _ = space.free()
    position = jnp.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [9.0, 0.0, 0.0]])
    idx = jnp.array([[1, 3], [0, 3], [3, 3]])

    def energy(position):
        rows = rows_from_neighbor_list(position, jnp.zeros(3, int), idx, displacement_fn, jnp.arange(4))
        r = jnp.linalg.norm(rows.displacement, axis=-1)
        return jnp.sum(jnp.where(rows.mask, r, 0.0))

    np.testing.assert_allclose(jax.grad(energy)(position), [[-2.0, 0, 0], [2.0, 0, 0], [0, 0, 0]])
