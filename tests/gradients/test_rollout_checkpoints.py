"""Which states are kept changes memory, and no value or gradient."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from depths import short
from rollouts import final, inputs_of
from trajectories import crystal

from moe_md import gradients, simulate
from moe_md.gradients.checkpointing import _root, levels_for

N_STEPS = 24


@cache
def kept_ways():
    """The function of what is observed, its inputs,
    and the plain way's values and gradients for any weights of energies.
    """
    c = crystal()
    integrator = simulate.langevin(c.shift_fn, 2.0, 100.0, 0.01)
    neighbors = c.allocate()

    def value(inputs, weights, **options):
        found, out = final(
            c,
            N_STEPS,
            integrator,
            inputs,
            neighbors=neighbors,
            observe=lambda s: (s.energy, s.velocity[0], s.step),
            **options,
        )
        return found + 0.1 * jnp.sum(weights * out.observed[0]), out.observed

    def grad(f):
        return jax.jit(jax.value_and_grad(f, has_aux=True, allow_int=True))

    return value, grad, inputs_of(c, integrator), grad(value)


WAYS = (
    {"checkpoint": 10},
    {"update_every": 8, "checkpoint": "sqrt", "observe_every": 4},
    {"update_every": 4, "observe_every": 8},
    {"update_every": None, "observe_every": 24, "checkpoint": 26},
    {"observe_every": 6, "summed": True, "checkpoint": "sqrt"},
)


@pytest.mark.parametrize("options", short(WAYS, only=[WAYS[4]]), ids=str)
def test_ways_of_keeping_change_nothing(options):
    value, grad, inputs, plain = kept_ways()
    every = options.get("observe_every", 1)
    (found, seen), gradient = grad(partial(value, **options))(inputs, 1.0)
    weights = jnp.zeros(N_STEPS).at[every - 1 :: every].set(1.0)
    (expected, expected_seen), expected_gradient = plain(inputs, weights)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    for x, y in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True):
        if x.dtype != jax.dtypes.float0:
            np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-11)
    rows = jax.tree.map(lambda x: x[every - 1 :: every], expected_seen)
    if options.get("summed"):
        rows = jax.tree.map(lambda x: x.sum(axis=0), rows)
    else:
        np.testing.assert_array_equal(seen[2], np.arange(every, N_STEPS + 1, every))
    for x, y in zip(jax.tree.leaves(seen), jax.tree.leaves(rows), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9)


@pytest.mark.thorough
def test_memory_grows_as_the_root():
    c = crystal()
    integrator = simulate.nve(c.shift_fn, 2.0)
    neighbors = c.allocate()

    def bytes_of(n_steps, **options):
        def value(params):
            return gradients.rollout(
                c.energy_fn,
                integrator,
                c.start(integrator),
                neighbors,
                n_steps,
                params=params,
                update_every=None,
                **options,
            ).energy

        return jax.jit(jax.grad(value)).lower(c.params).compile().memory_analysis().temp_size_in_bytes

    plain, root, longer, few = (
        bytes_of(400),
        bytes_of(400, checkpoint="sqrt"),
        bytes_of(1600, checkpoint="sqrt"),
        bytes_of(400, checkpoint=24),
    )
    assert root < 0.1 * plain and few < root
    assert longer < 2.2 * root  # four times as long


def test_levels():
    assert (
        [_root(n, 2) for n in (1, 4, 5, 9, 10)] == [1, 2, 3, 3, 4]
        and _root(1000, 3) == 10
        and _root(1001, 3) == 11
    )
    assert (
        levels_for(None, 100, 1) == 0
        and levels_for("sqrt", 100, 1) == 2
        and levels_for(100, 100, 1) == 1
        and levels_for(15, 100, 1) == 3
    )
    with pytest.raises(ValueError, match="checkpoint must be at least 14 states for 100 steps"):
        levels_for(13, 100, 1)
