"""The list against brute force, in every kind of box, while atoms and box move."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk
from depths import short
from jax_md import partition, space

from moe_md.neighbors.neighbor_list import neighbor_list, perpendicular_widths
from moe_md.neighbors.rows import image_pairs, rows_from_neighbor_list

CUTOFFS, SKIN = (3.0, 2.2), 0.5
SPACING = 5.0  # volume per atom, Å^3

BOXES = {
    "cubic": np.diag([14.0, 15.0, 16.0]),  # four cells or more along each edge
    "two cells": np.diag([14.0, 7.5, 15.0]),
    "one cell": np.diag([6.2, 6.4, 30.0]),
    "triclinic": np.array([[12.0, 4.0, -2.0], [0.0, 13.0, 5.0], [0.0, 0.0, 14.0]]),
    "leaning, narrow": np.array([[9.0, 3.0, 1.0], [0.0, 8.0, 2.0], [0.0, 0.0, 30.0]]),
    "full matrix": np.array([[12.0, -3.0, 1.0], [2.0, 13.0, 2.0], [-1.0, 3.0, -14.0]]),
}


def atoms_in(box, seed=0):
    """Positions in Å, some of them outside the box."""
    rng = np.random.default_rng(seed)
    n = max(30, int(abs(np.linalg.det(box)) / SPACING))
    return (rng.uniform(0.0, 1.0, (n, 3)) + rng.integers(-1, 2, (n, 3))) @ box.T


def expected_pairs(position, box, cutoff):
    i, j, D = image_pairs(position, box.T, (True,) * 3, cutoff)
    return in_order(np.column_stack([i, j, D]))


def in_order(pairs):
    rounded = np.round(pairs, 5) + 0.0
    return rounded[np.lexsort(rounded.T[::-1])]


def found_pairs(position, idx, displacement_fn, cutoff, kwargs):
    n_atoms = len(position)
    everyone = jnp.arange(n_atoms)

    @jax.jit  # whole: eagerly, each operation is a program of its own
    def rows_of(position, idx, kwargs):
        species = jnp.zeros(n_atoms, int)
        return rows_from_neighbor_list(position, species, idx, displacement_fn, everyone, **kwargs)

    rows = rows_of(jnp.asarray(position), idx, kwargs)
    D, mask, neighbor = (np.asarray(x) for x in (rows.displacement, rows.mask, rows.neighbor))
    centre, slot = np.nonzero(mask & (np.linalg.norm(D, axis=-1) < cutoff))
    return in_order(np.column_stack([centre, neighbor[centre, slot], D[centre, slot]]))


def agree(position, nbrs, displacement_fn, box, kwargs=None, atol=2e-5, fractional=True):
    assert not nbrs.did_buffer_overflow
    real = np.asarray(position) @ box.T if fractional else position
    for idx, cutoff in zip(nbrs.idx, CUTOFFS):
        found = found_pairs(position, idx, displacement_fn, cutoff, kwargs or {})
        expected = expected_pairs(real, box, cutoff)
        assert found.shape == expected.shape and len(found) > 20
        np.testing.assert_allclose(found, expected, atol=atol)


def make(box, fractional, skin=SKIN, **kwargs):
    if np.count_nonzero(box - np.diag(np.diag(box))):
        displacement_fn, _ = space.periodic_general(box, fractional_coordinates=fractional)
    elif fractional:
        displacement_fn, _ = space.periodic_general(np.diag(box), fractional_coordinates=True)
    else:
        displacement_fn, _ = space.periodic(np.diag(box))
    fns = neighbor_list(box, CUTOFFS, dr_threshold=skin, fractional_coordinates=fractional, **kwargs)
    return displacement_fn, fns


@pytest.mark.parametrize("skin", short([0.0, SKIN], only=[SKIN]))
@pytest.mark.parametrize("fractional", [False, True])
@pytest.mark.parametrize("name", BOXES)
def test_new_lists_hold_every_pair(name, fractional, skin):
    box = BOXES[name]
    displacement_fn, fns = make(box, fractional, skin)
    real = atoms_in(box)
    position = real @ np.linalg.inv(box).T % 1.0 if fractional else real
    agree(position, fns.allocate(jnp.asarray(position)), displacement_fn, box, fractional=fractional)


@pytest.mark.parametrize("name", BOXES)
def test_lists_follow_atoms(name):
    """Steps below and beyond half the skin, through the boundary, by `update` alone."""
    box = BOXES[name]
    displacement_fn, fns = make(box, True, capacity_multiplier=1.6)
    rng = np.random.default_rng(1)
    real = atoms_in(box)
    inverse = np.linalg.inv(box).T
    nbrs = fns.allocate(jnp.asarray(real @ inverse % 1.0), 8)
    update, remade = jax.jit(fns.update), 0
    for _ in range(8):
        real = real + 0.06 * rng.standard_normal(real.shape)
        before, nbrs = nbrs, update(jnp.asarray(real @ inverse % 1.0), nbrs)
        remade += int((np.asarray(before.reference_position) != np.asarray(nbrs.reference_position)).any())
        agree(real @ inverse % 1.0, nbrs, displacement_fn, box)
    assert 2 <= remade <= 7


@pytest.mark.parametrize("how", short(["box", "perturbation", "scalar"], only=["box"]))
def test_lists_follow_a_box_that_shrinks(how):
    """Fractions stand still, yet pairs come within the cutoff: jax-md's list misses them, ours does not."""
    box = BOXES["cubic"]
    displacement_fn, fns = make(box, True, capacity_multiplier=2.0)
    fraction = jnp.asarray(atoms_in(box) @ np.linalg.inv(box).T % 1.0)
    nbrs = fns.allocate(fraction)
    theirs = partition.neighbor_list(
        displacement_fn,
        box,
        CUTOFFS[0],
        dr_threshold=SKIN,
        format=partition.Dense,
        fractional_coordinates=True,
        disable_cell_list=True,
    )
    other = theirs.allocate(fraction, 40)
    missed = 0
    for scale in np.linspace(1.0, 0.8, 9):
        kwargs = {
            "box": {"box": jnp.asarray(scale * box)},
            "perturbation": {"perturbation": jnp.asarray(scale * np.eye(3))},
            "scalar": {"perturbation": jnp.asarray(scale)},
        }[how]
        smaller = scale * box
        nbrs = fns.update(fraction, nbrs, **kwargs)
        if nbrs.did_buffer_overflow:  # the cells became too narrow
            nbrs = fns.allocate(fraction, **kwargs)
        agree(fraction, nbrs, displacement_fn, smaller, kwargs)
        other = other.update(fraction, **kwargs)
        theirs_found = found_pairs(fraction, other.idx, displacement_fn, CUTOFFS[0], kwargs)
        missed += len(expected_pairs(np.asarray(fraction) @ smaller.T, smaller, CUTOFFS[0])) - len(
            theirs_found
        )
    assert missed >= 1


def test_a_box_that_shears_is_followed():
    box = BOXES["triclinic"]
    displacement_fn, fns = make(box, True, capacity_multiplier=1.6)
    fraction = jnp.asarray(atoms_in(box) @ np.linalg.inv(box).T % 1.0)
    nbrs = fns.allocate(fraction, 10)
    for shear in np.linspace(0.0, 0.08, 5):
        sheared = (np.eye(3) + shear * np.eye(3, k=1)) @ box
        nbrs = fns.update(fraction, nbrs, box=jnp.asarray(sheared))
        agree(fraction, nbrs, displacement_fn, sheared, {"box": jnp.asarray(sheared)})


def test_a_box_too_narrow_for_its_cells_or_its_cutoff_is_flagged():
    box = np.diag([15.0, 15.0, 6.2])
    displacement_fn, fns = make(box, True)
    fraction = jnp.asarray(atoms_in(box) @ np.linalg.inv(box).T % 1.0)
    nbrs = fns.allocate(fraction, 20)
    assert not fns.update(fraction, nbrs, box=jnp.asarray(0.99 * box)).did_buffer_overflow
    assert fns.update(
        fraction, nbrs, box=jnp.asarray(box * [1.0, 1.0, 0.95])
    ).did_buffer_overflow  # under 2 x 3 Å
    assert fns.update(
        fraction, nbrs, box=jnp.asarray(box * [0.9, 1.0, 1.0])
    ).did_buffer_overflow  # 4 cells under 3.5 Å


def test_float32_positions_on_cell_faces():
    """A perfect crystal: atoms sit where cells meet."""
    atoms = bulk("Pt", a=3.0, cubic=True).repeat(5)
    box = atoms.cell.array.T
    displacement_fn, fns = make(box, False)
    position = atoms.positions.astype(np.float32)
    agree(position, fns.allocate(jnp.asarray(position)), displacement_fn, box, atol=1e-4, fractional=False)


def test_overflow_is_flagged_and_stays():
    box = BOXES["cubic"]
    _, fns = make(box, False, capacity_multiplier=1.0)
    position = jnp.asarray(atoms_in(box))
    nbrs = fns.allocate(position)
    crowded = fns.update(position * 0.6, nbrs)
    assert crowded.did_buffer_overflow and fns.update(position, crowded).did_buffer_overflow
    assert not fns.allocate(position * 0.6).did_buffer_overflow


def test_narrow_slabs_need_linear_memory():
    """A plate under three cutoffs thick: twice the atoms, twice the memory."""

    def bytes_needed(columns):
        atoms = bulk("Pt", a=3.9, cubic=True).repeat((columns, columns, 2))
        box = atoms.cell.array.T
        _, fns = make(box, False)
        position = jnp.asarray(atoms.get_positions(wrap=True), jnp.float32)
        nbrs = fns.allocate(position)
        memory = jax.jit(fns.update).lower(position, nbrs).compile().memory_analysis()
        return len(atoms), memory.temp_size_in_bytes + memory.output_size_in_bytes

    (n, small), (m, large) = bytes_needed(16), bytes_needed(48)
    assert m == 9 * n
    assert large < 12 * small
    assert large / m < 2_000  # bytes per atom; all pairs would need 4 m = 73,000


def test_widths_are_perpendicular():
    np.testing.assert_allclose(
        perpendicular_widths(np.array([[4.0, 3.0, 0], [0, 4.0, 0], [0, 0, 5.0]])), [3.2, 4.0, 5.0]
    )
    np.testing.assert_allclose(perpendicular_widths(7.0), [7.0] * 3)
    np.testing.assert_allclose(perpendicular_widths([7.0, 8.0, 9.0]), [7.0, 8.0, 9.0])


def test_atoms_without_a_place_are_nobodys_neighbours():
    """Rows of some atoms at capacities given, beside slots that hold no atom."""
    box = BOXES["cubic"]
    displacement_fn, fns = make(box, fractional=False)
    position = atoms_in(box)
    n = len(position)
    padded = np.insert(position, [3, 10, n], np.nan, axis=0)
    real = np.flatnonzero(~np.isnan(padded[:, 0]))
    centers = jnp.asarray([*real, n + 3])
    idx, needed, most = fns.rows(jnp.asarray(padded), centers, 40, (80, 80))
    assert (np.asarray(needed) < 80).all() and most < 40
    back = np.full(n + 4, n)
    back[real] = np.arange(n)
    for rows, cutoff in zip(idx, CUTOFFS):
        assert (np.asarray(rows[-1]) == n + 3).all()
        found = found_pairs(position, jnp.asarray(back[np.asarray(rows[:-1])]), displacement_fn, cutoff, {})
        expected = expected_pairs(position, box, cutoff)
        assert found.shape == expected.shape and len(found) > 20
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_made_anew_it_follows_from_the_position_alone():
    """Also where the old list would do; `stale` says where it would not."""
    box = BOXES["triclinic"]
    displacement_fn, fns = make(box, fractional=False)
    first = jnp.asarray(atoms_in(box))
    nbrs = fns.allocate(first, extra_capacity=20)
    near = first + 0.1 * SKIN * jnp.asarray(np.random.default_rng(1).uniform(-1, 1, first.shape))
    far = first.at[4, 1].add(0.6 * SKIN)
    assert not fns.stale(first, nbrs) and not fns.stale(near, nbrs) and fns.stale(far, nbrs)
    kept, renewed = fns.update(near, nbrs), fns.update(near, nbrs, renew=True)
    np.testing.assert_array_equal(kept.reference_position, first)
    np.testing.assert_array_equal(renewed.reference_position, near)
    by_way_of_another = fns.update(near, fns.update(far, nbrs, renew=True), renew=True)
    for x, y in zip(jax.tree.leaves(renewed), jax.tree.leaves(by_way_of_another), strict=True):
        np.testing.assert_array_equal(x, y)
    assert any((np.asarray(x) != np.asarray(y)).any() for x, y in zip(kept.idx, renewed.idx))
