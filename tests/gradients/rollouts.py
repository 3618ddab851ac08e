"""A rollout of the small crystal, as one number of all its inputs."""

import jax
import jax.numpy as jnp
import numpy as np

from moe_md import gradients

KEY = jax.random.key(7)


def made_of(state, box):
    """A number that wrapping does not change."""
    axis = jnp.arange(3.0)[None]
    waves = jnp.sin(2 * np.pi * state.position / jnp.reshape(box, (1, -1)))
    return jnp.sum(waves * axis) + 0.1 * jnp.sum(state.velocity[::3] * (1.0 + axis))


def final(c, n_steps, integrator, inputs, **options):
    """The number, as a function of all inputs."""
    params, region, position, momentum, integrator_now = inputs
    state = c.start(integrator_now, position, momentum, KEY)
    out = gradients.rollout(
        c.energy_fn,
        integrator_now,
        state,
        options.pop("neighbors"),
        n_steps,
        params=params,
        region=region,
        **options,
    )
    return made_of(out.state, c.box), out


def inputs_of(c, integrator):
    return (c.params, c.region, c.position, c.momentum, integrator)
