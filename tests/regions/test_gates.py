"""Who owns what: gates of every kind of region, of combinations of them, and of a class of one's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_md import space

from moe_md.regions import (
    Fixed,
    Region,
    around,
    complement,
    custom,
    fixed,
    nested,
    slab,
    sphere,
    switch,
    union,
)
from moe_md.regions.serialize import region_from_dict

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


def test_constant_gates_from_a_file_are_jax_arrays():
    region = region_from_dict(sphere(POSITION, POSITION[0], 0.1, blend=9.0).to_dict())
    found = (
        region.gate(jnp.asarray(POSITION), displacement_fn),
        region.support(POSITION, displacement_fn, 0.5),
    )
    assert all(isinstance(values, jax.Array) for values in found)  # a mixture uses `.at`


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
        (
            lambda: sphere(POSITION, [0.0, 0.0], 1.0),
            r"position and center must have shapes .* \(4, 3\) and \(2,\)",
        ),
        (
            lambda: sphere(POSITION, np.zeros(3), 0.0),
            "radius must be positive and blend not negative .* got 0.0 and 0.0",
        ),
        (
            lambda: sphere(POSITION, np.zeros(3), 1.0),
            "sphere must select at least one atom: radius = 1.0 .* 2.236 Å from center",
        ),
        (lambda: around([0.5], 1.0, 1.0), "seeds must be a vector of atom indices"),
        (lambda: around([-1], 1.0, 1.0), "seeds must be a vector of atom indices"),
        (lambda: around([], 1.0, 1.0), "seeds must be a vector of atom indices"),
        (
            lambda: around([0], 1.0, 0.0),
            "r_core must not be negative and r_blend positive .* got 1.0 and 0.0",
        ),
        (lambda: custom(None), "gate_fn must be a function, got None"),
        (lambda: custom(len, 3), "support_fn must be a function, got 3"),
        (lambda: union(), "regions must be at least one, got none"),
        (lambda: nested(), "regions must be at least one, got none"),
    ],
)
def test_bad_regions_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_switch_has_two_continuous_derivatives():
    ends = jnp.array([0.0, 1.0])
    slope, curvature = jax.grad(switch), jax.grad(jax.grad(switch))
    np.testing.assert_array_equal(switch(ends), [1.0, 0.0])
    for d in (slope, curvature):
        np.testing.assert_allclose(jax.vmap(d)(ends + jnp.array([1e-7, -1e-7])), 0.0, atol=1e-5)
        np.testing.assert_array_equal(jax.vmap(d)(ends + jnp.array([-1e-7, 1e-7])), 0.0)
    assert float(switch(0.5)) == pytest.approx(0.5)


def test_sphere_is_frozen():
    region = sphere(POSITION, POSITION[1], 1.0, blend=5.0)
    gate = np.asarray(region.gate(jnp.asarray(POSITION) + 100.0, displacement_fn))
    distance = np.linalg.norm(POSITION - POSITION[1], axis=1)
    np.testing.assert_allclose(gate[:, 0], switch((distance - 1.0) / 5.0), rtol=1e-12)
    assert 0 < gate[0, 0] < 1 and gate[3].tolist() == [0.0, 1.0]
    np.testing.assert_array_equal(region.support(POSITION, displacement_fn, 1.0), gate > 0)
    periodic, _ = space.periodic(9.0)
    across = sphere(POSITION, [9.0, 0.0, -1.0], 2.0, displacement_fn=periodic)
    assert across.assignment.tolist() == [1, 1, 1, 0]
    assert sphere(POSITION, [0.0, 0.0, 0.0], 2.5).assignment.tolist() == [1, 0, 1, 1]


def combinations():
    two = around([1, 2], 1.0, 1.5)
    return {
        "around": two,
        "complement": complement(two),
        "union": union(around([0], 0.5, 1.0), two, fixed([0, 0, 1, 1, 1, 1])),
        "nested": nested(around([3], 0.7, 0.9), complement(two), fixed([0, 1, 1, 1, 0, 1])),
    }


@pytest.mark.parametrize("name", combinations())
def test_gates_sum_to_one_and_support_holds_them_after_any_move(name):
    region, rng, margin = combinations()[name], np.random.default_rng(0), 0.6
    blended = 0
    for _ in range(200):
        position = rng.uniform(0.0, 4.0, (6, 3))
        held = np.asarray(region.support(jnp.asarray(position), displacement_fn, margin))
        step = rng.normal(size=(6, 3))
        step *= 0.5 * margin * rng.random((6, 1)) / np.linalg.norm(step, axis=1, keepdims=True)
        gate = np.asarray(region.gate(jnp.asarray(position + step), displacement_fn))
        np.testing.assert_allclose(gate.sum(axis=1), 1.0, rtol=1e-14)
        assert gate.min() >= 0 and gate.shape == held.shape
        assert not np.any((gate > 0) & ~held)
        blended += np.sum((gate > 0.01) & (gate < 0.99))
    assert blended > 20 and region.is_dynamic


def test_combinations_are_what_sets_are():
    a, b = fixed([0, 0, 1, 1]), fixed([0, 1, 0, 1])
    R = jnp.asarray(POSITION)

    def owner(region):
        return np.argmax(region.gate(R, displacement_fn), axis=1).tolist()

    assert owner(union(a, b)) == [0, 0, 0, 1] and owner(complement(a)) == [1, 1, 0, 0]
    assert owner(nested(a, b)) == [0, 0, 1, 2]
    assert not union(a, b).is_dynamic and union(a, around([0], 1.0, 1.0)).is_dynamic
    with pytest.raises(ValueError, match="must be of two experts, got 3"):
        union(fixed([0, 1, 2, 0], n_experts=3)).gate(R, displacement_fn)


def test_custom_regions_do_what_functions_say():
    def gate(height, position, displacement_fn):
        inside = switch(height - position[:, 2])
        return jnp.stack([inside, 1.0 - inside], axis=1)

    region, R = custom(gate, parameters=jnp.asarray(2.5)), jnp.asarray(POSITION)
    np.testing.assert_allclose(region.gate(R, displacement_fn)[:, 0], [1.0, 0.5, 0.5, 0.0])
    assert region.support(R, displacement_fn, 0.1).all() and len(jax.tree.leaves(region)) == 1
    slope = jax.grad(lambda r: jnp.sum(r.gate(R, displacement_fn)[:, 0]))(region).parameters
    assert float(slope) < 0
    near = custom(
        gate,
        lambda height, R, d, margin: jnp.stack([R[:, 2] > height - 1 - margin, R[:, 2] < height + margin], 1),
        2.5,
    )
    assert near.support(R, displacement_fn, 0.1).tolist() == [
        [True, False],
        [True, True],
        [True, True],
        [False, True],
    ]


class Sharp(Region):
    """A region of one's own with the two methods that a mixture needs."""

    def gate(self, position, displacement_fn, neighbors=None):
        return jnp.stack([jnp.ones(len(position)), jnp.zeros(len(position))], axis=1)

    def support(self, position, displacement_fn, margin, neighbors=None):
        return self.gate(position, displacement_fn) > 0


def test_a_region_class_of_ones_own_has_defaults():
    region = Sharp()
    assert region.is_dynamic and region.smooth and region.neighbor_cutoff() == 0.0
    assert region.required_neighbors(0.4) is None and region.check_size(3, 2) is None
    for use in (region.interaction_range, lambda: region.restrict(np.arange(3)), region.to_dict):
        with pytest.raises(ValueError, match="got Sharp. A class of your own must define"):
            use()


def test_what_lacks_methods_is_told_of_the_class_to_derive_from():
    with pytest.raises(ValueError, match=r"gate, support and required_neighbors, got 3.*mm\.regions\.Region"):
        complement(3)


def test_restricted_regions_have_the_gates_of_their_atoms():
    """A subset of the atoms, a distant image of one of them, and a padded entry."""
    index = np.array([3, 1, 2, 1, -1])
    held = jnp.asarray(POSITION[index] + np.outer([0, 0, 0, 1, 2], [1e3, 0.0, 0.0]))
    regions = (fixed([0, 1, 1, 0]), sphere(POSITION, POSITION[2], 1.0, blend=5.0), around([1, 3], 1.0, 3.0))
    for region in (*regions, complement(regions[0]), union(*regions), nested(*regions)):
        gate = region.gate(jnp.asarray(POSITION), displacement_fn)
        part = region.restrict(index).gate(held, displacement_fn)
        np.testing.assert_allclose(part[:-1], gate[index[:-1]], atol=1e-12)
