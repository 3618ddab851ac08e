"""Who owns what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_md import space

from moe_md.regions import Fixed, fixed, slab

displacement_fn, _ = space.free()
POSITION = np.array([[0.0, 1.0, 5.0], [1.0, 0.0, 2.0], [2.0, 3.0, 2.0], [9.0, 0.0, -1.0]])


def test_fixed_gates_are_one_for_the_owner():
    region = fixed([2, 0, 0, 1], n_experts=3)
    gate = region.gate(jnp.asarray(POSITION), displacement_fn)
    np.testing.assert_array_equal(gate, [[0, 0, 1], [1, 0, 0], [1, 0, 0], [0, 1, 0]])
    np.testing.assert_array_equal(region.support(jnp.asarray(POSITION), displacement_fn, 0.5), gate > 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gates_have_the_dtype_of_positions(dtype):
    assert fixed([0, 1, 1, 0]).gate(jnp.asarray(POSITION, dtype), displacement_fn).dtype == dtype


def test_a_region_is_a_pytree():
    region = fixed([0, 1, 1, 0], n_experts=3)
    leaves, tree = jax.tree.flatten(region)
    assert len(leaves) == 1
    again = jax.tree.unflatten(tree, [jnp.array([2, 2, 0, 0])])
    assert isinstance(again, Fixed) and again.n_experts == 3
    gate = jax.jit(lambda region, R: region.gate(R, displacement_fn))(again, jnp.asarray(POSITION))
    assert gate.shape == (4, 3) and np.argmax(gate, axis=1).tolist() == [2, 2, 0, 0]


@pytest.mark.parametrize(
    "settings, expected",
    [
        (dict(lower=2.5), [0, 1, 1, 1]),
        (dict(upper=0.0), [1, 1, 1, 0]),
        (dict(lower=2.0, upper=5.0), [0, 0, 0, 1]),  # atoms on a plane are inside
        (dict(lower=0.5, upper=2.5, axis=0), [1, 0, 0, 1]),
        (dict(lower=3.0, axis=1), [1, 1, 0, 1]),
        (dict(), [0, 0, 0, 0]),
    ],
)
def test_slab_takes_what_lies_between_its_planes(settings, expected):
    assert slab(POSITION, **settings).assignment.tolist() == expected


def test_an_atom_keeps_its_expert():
    region = slab(POSITION, lower=2.5)
    moved = jnp.asarray(POSITION[::-1].copy())
    np.testing.assert_array_equal(jnp.argmax(region.gate(moved, displacement_fn), axis=1), [0, 1, 1, 1])


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: fixed([0, 2]), "assignment must lie between 0 and n_experts - 1 = 1, got 0 to 2"),
        (lambda: fixed([-1, 0]), "assignment must lie between 0 .* got -1 to 0"),
        (lambda: fixed([0.0, 1.0]), r"assignment must be a vector of integers.*\(2,\) and dtype float64"),
        (lambda: fixed([True, False]), "assignment must be a vector of integers.* dtype bool"),
        (lambda: fixed([[0, 1]]), r"assignment must be a vector of integers.*\(1, 2\)"),
        (lambda: fixed([0], n_experts=0), "n_experts must be at least 1, got 0"),
        (lambda: slab(POSITION[:, :2]), r"position must have shape \[n_atoms, 3\], got \(4, 2\)"),
        (lambda: slab(POSITION, axis=3), "axis must be 0, 1 or 2, got 3"),
        (lambda: slab(POSITION, n_experts=1), "n_experts must be at least 2 for a slab, got 1"),
        (lambda: slab(POSITION, lower=5.1), r"slab must select .*: lower = 5.1.* span -1.000 to 5.000 Å"),
        (lambda: slab(POSITION, lower=3.0, upper=2.0), "slab must select at least one atom"),
    ],
)
def test_bad_regions_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
