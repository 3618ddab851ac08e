"""Gradients of trajectories are central differences, and forward mode is reverse mode."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_md import space
from rollouts import final, inputs_of, made_of
from trajectories import crystal, experts, slope

import moe_md as mm
from moe_md import gradients, simulate


def test_gradients_are_central_differences_after_200_steps():
    c = crystal()
    integrator = simulate.langevin(c.shift_fn, 2.0, 100.0, 0.01)
    f = partial(final, c, 200, integrator, neighbors=c.allocate())
    inputs = inputs_of(c, integrator)
    gradient = jax.jit(jax.grad(lambda x: f(x, checkpoint="sqrt")[0], allow_int=True))(inputs)
    value = jax.jit(lambda x: f(x)[0])
    assert not jax.jit(lambda x: f(x)[1].overflow)(inputs)
    params, region, position, momentum, _ = inputs
    of_params, of_region, of_position, of_momentum, of_integrator = gradient
    rng = np.random.default_rng(3)
    direction = jnp.asarray(rng.normal(size=position.shape))

    def with_params(name, e):
        return lambda x: value(
            (tuple({**p, name: x} if n == e else p for n, p in enumerate(params)), *inputs[1:])
        )

    cases = {
        "epsilon": (of_params[0]["epsilon"], with_params("epsilon", 0), 0.6, 1e-4),
        "sigma": (of_params[1]["sigma"], with_params("sigma", 1), 2.52, 1e-5),
        "r_core": (
            of_region.r_core,
            lambda x: value((params, replace(region, r_core=x), *inputs[2:])),
            1.4,
            1e-4,
        ),
        "r_blend": (
            of_region.r_blend,
            lambda x: value((params, replace(region, r_blend=x), *inputs[2:])),
            1.7,
            1e-4,
        ),
        "position": (
            jnp.sum(of_position * direction),
            lambda x: value((params, region, position + x * direction, *inputs[3:])),
            0.0,
            1e-5,
        ),
        "momentum": (
            jnp.sum(of_momentum * direction),
            lambda x: value((*inputs[:3], momentum + x * direction, integrator)),
            0.0,
            1e-4,
        ),
        "temperature": (
            of_integrator.temperature_K,
            lambda x: value((*inputs[:4], replace(integrator, temperature_K=x))),
            100.0,
            1e-2,
        ),
        "friction": (
            of_integrator.friction_per_fs,
            lambda x: value((*inputs[:4], replace(integrator, friction_per_fs=x))),
            0.01,
            1e-6,
        ),
        "timestep": (
            of_integrator.timestep_fs,
            lambda x: value((*inputs[:4], replace(integrator, timestep_fs=x))),
            2.0,
            1e-5,
        ),
    }
    for name, (found, along, at, step) in cases.items():
        assert abs(found) > 1e-4, name
        np.testing.assert_allclose(found, slope(along, at, step), rtol=1e-6, err_msg=name)


@pytest.mark.thorough
def test_gradient_with_respect_to_the_box():
    """Fractional coordinates: the atoms' fractions and momenta stay, the box grows."""
    c = crystal()
    matrix = jnp.asarray(np.diag(c.box) + 0.3 * np.triu(np.ones((3, 3)), 1))
    displacement_fn, shift_fn = space.periodic_general(matrix)
    fraction = c.position / c.box[None]
    fns = mm.mixture_neighbor_list(
        displacement_fn,
        matrix,
        mm.experts.potentials(experts(), c.params),
        np.zeros(32, int),
        c.region,
        fractional_coordinates=True,
    )
    integrator = simulate.nve(shift_fn, 2.0)
    neighbors = fns[0].allocate(fraction, box=matrix)

    def value(box):
        state = integrator.init(fraction, c.momentum, c.mass, None, box)
        out = gradients.rollout(
            fns[1], integrator, state, neighbors, 40, box=box, observe=lambda s: s.energy, observe_every=10
        )
        apart = jax.vmap(partial(displacement_fn, box=box), (0, 0))(
            out.state.position[:16], out.state.position[16:]
        )
        return (
            jnp.sum(out.observed) * 0.1
            + jnp.sum(apart**2)
            + jnp.sum(out.state.velocity[:5] * jnp.arange(1.0, 4.0)[None])
        )

    gradient = jax.jit(jax.grad(value))(matrix)
    along = jax.jit(value)
    for i, j in ((0, 0), (1, 1), (0, 1), (1, 2)):
        unit = jnp.zeros((3, 3)).at[i, j].set(1.0)
        np.testing.assert_allclose(
            gradient[i, j], slope(lambda x, unit=unit: along(matrix + x * unit), 0.0, 1e-5), rtol=1e-6
        )


def test_forward_mode_and_hessian_vector_products():
    c = crystal()
    integrator = simulate.langevin(c.shift_fn, 2.0, 100.0, 0.01)
    neighbors = c.allocate()

    def value(few, **options):
        """Of few numbers: epsilon, r_core, r_blend, temperature."""
        params = ({**c.params[0], "epsilon": few[0]}, c.params[1])
        region = replace(c.region, r_core=few[1], r_blend=few[2])
        inputs = (params, region, c.position, c.momentum, replace(integrator, temperature_K=few[3]))
        return final(c, 16, integrator, inputs, neighbors=neighbors, **options)[0]

    few, direction = jnp.asarray([0.6, 1.4, 1.7, 100.0]), jnp.asarray([0.3, -0.2, 0.1, 2.0])
    reverse = jax.jit(jax.grad(partial(value, checkpoint="sqrt")))
    forward = jax.jit(lambda x: jax.jvp(value, (x,), (direction,))[1])
    np.testing.assert_allclose(forward(few), reverse(few) @ direction, rtol=1e-10)
    product = jax.jit(lambda x: jax.jvp(jax.grad(partial(value, checkpoint="sqrt")), (x,), (direction,))[1])(
        few
    )
    # The gate has two continuous derivatives, and this is made of its third: no higher order than the second.
    step = 1e-4
    expected = (reverse(few + step * direction) - reverse(few - step * direction)) / (2 * step)
    np.testing.assert_allclose(product, expected, rtol=1e-5, atol=1e-6 * jnp.abs(expected).max())


@pytest.mark.thorough
def test_experts_that_are_networks():
    """Parameters of power spectra after 200 steps, by central differences along a direction."""
    c = crystal()
    expert = mm.experts.power_spectrum(("Pt",), 3.6, l_max=1, num_channels=2, hidden=(4,))
    params = (expert.init(jax.random.key(0)), expert.init(jax.random.key(1)))
    displacement_fn, _ = space.periodic(jnp.asarray(c.box))
    fns = mm.mixture_neighbor_list(
        displacement_fn,
        c.box,
        mm.experts.potentials((expert, expert), params),
        np.zeros(32, int),
        c.region,
        chunk_size=16,
    )
    neighbors, integrator = fns[0].allocate(c.position), simulate.nve(c.shift_fn, 2.0)
    rng = np.random.default_rng(0)
    direction = jax.tree.map(lambda x: 0.1 * jnp.asarray(rng.normal(size=x.shape)), params)

    def value(params):
        out = gradients.rollout(
            fns[1], integrator, c.start(integrator), neighbors, 200, params=params, checkpoint="sqrt"
        )
        return made_of(out.state, c.box) + out.energy

    gradient = jax.jit(jax.grad(value))(params)
    found = sum(jnp.sum(a * b) for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction)))
    along = jax.jit(lambda x: value(jax.tree.map(lambda p, d: p + x * d, params, direction)))
    np.testing.assert_allclose(found, slope(along, 0.0, 1e-4), rtol=1e-6)
