"""Differentiable trajectories against central differences, against `run`, and against themselves."""

from dataclasses import replace
from functools import cache, partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from depths import short
from jax_md import space
from trajectories import crystal, experts, slope

import moe_md as mm
from moe_md import gradients, simulate
from moe_md.gradients.checkpointing import _root, levels_for

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


def test_the_same_path_as_run():
    c = crystal()
    for integrator in (
        simulate.nve(c.shift_fn, 2.0),
        simulate.langevin(c.shift_fn, 2.0, 100.0, 0.01),
        simulate.nose_hoover(c.shift_fn, 2.0, 100.0),
    ):
        fns = (c.neighbor_fn, c.energy_fn)
        ran = simulate.run(
            *fns,
            integrator,
            simulate.start(
                integrator, c.position, masses=c.mass, velocity=c.momentum / c.mass[:, None], key=KEY
            ),
            n_steps=20,
        )
        begun = simulate.run(
            *fns,
            integrator,
            simulate.start(
                integrator, c.position, masses=c.mass, velocity=c.momentum / c.mass[:, None], key=KEY
            ),
            n_steps=0,
        )
        out = jax.jit(lambda s, n, by=integrator: gradients.rollout(c.energy_fn, by, s, n, 20))(
            begun.state, begun.neighbors
        )
        np.testing.assert_allclose(out.state.position, ran.state.position, atol=1e-10)
        np.testing.assert_allclose(out.state.momentum, ran.state.dynamics.momentum, atol=1e-10)
        np.testing.assert_allclose(out.energy, ran.log.potential[-1], rtol=1e-12)
        assert gradients.check_rollout(out) is out


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


def test_lists_that_do_not_hold_turn_everything_into_nan():
    c = crystal(temperature_K=3000.0, dr_threshold=0.1)
    integrator = simulate.nve(c.shift_fn, 2.0)

    def value(params, neighbors, update_every):
        out = gradients.rollout(
            c.energy_fn,
            integrator,
            c.start(integrator),
            neighbors,
            20,
            params=params,
            update_every=update_every,
        )
        return out.energy + jnp.sum(out.state.position), out

    for update_every, too_few in ((None, False), (20, False), (1, True)):
        neighbors = c.allocate()
        if too_few:  # slots for the neighbours of a perfect crystal, less one
            rows = neighbors.list.idx[0]
            neighbors = replace(
                neighbors,
                list=replace(neighbors.list, idx=(rows[:, :11],), reference_position=c.position + 1.0),
            )
        (found, out), gradient = jax.jit(jax.value_and_grad(value, has_aux=True), static_argnums=2)(
            c.params, neighbors, update_every
        )
        assert (
            bool(out.overflow)
            and np.isnan(found)
            and np.isnan(out.state.position).all()
            and np.isnan(out.state.momentum).all()
        )
        assert all(np.isnan(x) for x in jax.tree.leaves(gradient))
        with pytest.raises(RuntimeError, match="neighbour lists must hold"):
            gradients.check_rollout(out)
    # Made anew often enough they hold.
    (found, out), gradient = jax.jit(jax.value_and_grad(value, has_aux=True), static_argnums=2)(
        c.params, c.allocate(extra_capacity=8), 1
    )
    assert not out.overflow and np.isfinite(found) and all(np.isfinite(x) for x in jax.tree.leaves(gradient))
    with pytest.raises(FloatingPointError, match="shorter timestep_fs"):
        gradients.check_rollout(out._replace(energy=jnp.nan))


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


def test_what_does_not_fit_is_refused():
    c = crystal()
    nve, neighbors = simulate.nve(c.shift_fn, 2.0), c.allocate()
    good = dict(energy_fn=c.energy_fn, integrator=nve, state=c.start(nve), neighbors=neighbors, n_steps=12)
    npt = simulate.npt(c.shift_fn, 2.0, 100.0)
    inner = SimpleNamespace(inner_energy=c.energy_fn, inner_outer_split=c.energy_fn)
    bad = [
        ("region must have smooth gates", dict(region=mm.regions.reassigned(c.region))),
        (
            "region must have smooth gates",
            dict(region=mm.regions.union(c.region, mm.regions.reassigned(c.region))),
        ),
        ("integrator must keep the box fixed", dict(integrator=npt)),
        (
            "integrator must have outer_every = 1",
            dict(integrator=simulate.respa(nve, inner, 2)),
        ),
        ("integrator must be from", dict(integrator="nve")),
        (
            "integrator must have a friction for each atom",
            dict(
                integrator=simulate.langevin(
                    c.shift_fn, 2.0, 100.0, friction_fn=simulate.expert_friction(c.neighbor_fn, (0.0, 0.01))
                )
            ),
        ),
        (
            "state must be a NVTLangevinState",
            dict(integrator=simulate.langevin(c.shift_fn, 2.0, 100.0, 0.01)),
        ),
        ("state must be the integrator's", dict(state=c.position)),
        ("neighbors must be", dict(neighbors=None)),
        ("energy_fn must be", dict(energy_fn=None)),
        ("n_steps must be", dict(n_steps=-1)),
        ("n_steps must be", dict(n_steps=2.0)),
        ("n_steps must be a multiple of update_every = 5", dict(update_every=5)),
        ("n_steps must be a multiple of observe_every = 5", dict(observe_every=5)),
        ("observe_every and update_every must be multiples", dict(observe_every=2, update_every=3)),
        ("update_every must be", dict(update_every=0)),
        ("observe must be", dict(observe=1)),
        ("checkpoint must be None", dict(checkpoint="log")),
        ("checkpoint must be at least", dict(checkpoint=2)),
        ("checkpoint must be a whole number", dict(checkpoint=2.5)),
    ]
    for message, change in bad:
        with pytest.raises(ValueError, match=message):
            gradients.rollout(**{**good, **change})


@pytest.mark.thorough
def test_no_steps_and_many_at_once():
    c = crystal()
    integrator = simulate.langevin(c.shift_fn, 2.0, 100.0, 0.01)
    neighbors = c.allocate()
    still = gradients.rollout(c.energy_fn, integrator, c.start(integrator, key=KEY), neighbors, 0)
    np.testing.assert_array_equal(still.state.position, c.position)
    np.testing.assert_allclose(still.energy, c.energy_fn(c.position, neighbors))

    def energy(key):
        return gradients.rollout(
            c.energy_fn, integrator, c.start(integrator, key=key), neighbors, 5, update_every=None
        ).energy

    keys = jax.random.split(KEY, 3)
    np.testing.assert_allclose(jax.vmap(energy)(keys), [energy(k) for k in keys], rtol=1e-12)
