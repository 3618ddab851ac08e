"""The backward pass of a reversible rollout: adjoint equations along the time-reversed trajectory.

The trajectory is integrated in reverse from its end, exactly, while derivatives of
the loss with respect to positions and momenta follow the adjoint of velocity
Verlet (Greener, Nat. Commun. 2025, doi 10.1038/s41467-025-63127-4, for force
fields).

`d_x` is the derivative of the loss with respect to x.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from moe_md.gradients.fixed_point import (
    Inputs,
    Plan,
    Reached,
    Residuals,
    drift,
    energy_and_force,
    energy_and_force_with_barrier,
    first_lists,
    half_kick,
    lists_at,
    to_float,
)
from moe_md.gradients.trajectory import Snapshot

WIDE = jnp.float64  # dtype in which derivatives are accumulated


def reverse_step(
    plan: Plan, inputs: Inputs, others, lists, X: Int[Array, "atoms 3"], half: Int[Array, "atoms 3"]
) -> tuple[
    Float[Array, ""],
    Float[Array, "atoms 3"],
    Int[Array, "atoms 3"],
    Int[Array, "atoms 3"],
    Int[Array, "atoms 3"],
]:
    """From X, and P half a step later, back by one step.

    Returns:
        Energy, force and P at X; then X one step earlier and P half a step earlier.
    """
    energy, force = energy_and_force_with_barrier(plan, inputs, others, lists, to_float(X, plan.dtype))
    kick = half_kick(inputs.timestep, force)
    P = half - kick
    before = P - kick
    return energy, force, P, X - drift(inputs.timestep, inputs.mass, before), before


def reverse_integration(
    plan: Plan, inputs: tuple, residuals: Residuals
) -> tuple[Int[Array, "atoms 3"], Int[Array, "atoms 3"], Bool[Array, ""]]:
    """The trajectory in reverse, without derivatives.

    Returns:
        X at the start, P half a step later, and whether all stored positions were met bit for bit.
    """

    def block(carry, stored):
        X, half, same = carry
        lists = lists_at(plan, *inputs, stored if plan.rebuild else X)

        def one(carry, _):
            return reverse_step(plan, inputs[0], inputs[1], lists, *carry)[3:], None

        (X, half), _ = jax.lax.scan(one, (X, half), None, plan.n_observations * plan.n_between)
        return (X, half, same & (jnp.all(stored == X) if plan.rebuild else True)), None

    begin = *residuals.end, jnp.ones((), bool)
    return jax.lax.scan(block, begin, residuals.stored_positions, plan.n_blocks, reverse=True)[0]


class _Cotangents(NamedTuple):
    """State of the backward loop."""

    X: Array
    half: Array  # P half a step later
    same: Array  # bool, all stored positions were met bit for bit
    d_position: Array
    d_momentum: Array
    d_kick: Array  # by the momenta after the first half kick of the following step; zero at the end
    d_force: Array
    d_energy: Array
    d_mass: Array
    d_timestep: Array
    d_leaves: tuple[Array, ...]
    d_constants: tuple[Array, ...]
    step: Array


def backward(plan: Plan, inputs: tuple, residuals: Residuals, given: Reached) -> Inputs:
    """Derivatives of the loss with respect to `Inputs`, from those with respect to `Reached`.

    All are NaN where the reverse integration did not end at the start, bit for bit.
    """
    own, others, _ = inputs
    observed = None
    if plan.observe is not None and not plan.summed:
        shape = plan.n_blocks, plan.n_observations
        observed = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), given.observed)

    def block(back: _Cotangents, stored_and_observed) -> tuple[_Cotangents, None]:
        stored, observed = stored_and_observed
        lists = lists_at(plan, *inputs, stored if plan.rebuild else back.X)
        reverse = partial(_until_observed, plan, own, others, lists, given)
        back, _ = jax.lax.scan(
            lambda b, seen: (reverse(b, seen), None), back, observed, plan.n_observations, reverse=True
        )
        return back._replace(same=back.same & (jnp.all(stored == back.X) if plan.rebuild else True)), None

    back = _at_the_end(plan, own, residuals, given)
    back, _ = jax.lax.scan(block, back, (residuals.stored_positions, observed), plan.n_blocks, reverse=True)
    lists = first_lists(plan, inputs, residuals)
    _, _, P, _, _, back = _reverse_kick(plan, own, others, lists, back)
    back = _through_energy_and_force(plan, own, others, lists, back)
    same = back.same & jnp.all(residuals.start[0] == back.X) & jnp.all(residuals.start[1] == P)
    factor = jnp.where(same, 1.0, jnp.nan)
    found = Inputs(
        back.d_position, back.d_momentum, back.d_mass, back.d_timestep, back.d_leaves, back.d_constants
    )
    return jax.tree.map(lambda x, like: (x * factor).astype(like.dtype), found, own)


def _at_the_end(plan: Plan, own: Inputs, residuals: Residuals, given: Reached) -> _Cotangents:
    X, half = residuals.end
    n_steps = plan.n_blocks * plan.n_observations * plan.n_between
    return _Cotangents(
        X=X,
        half=half,
        same=jnp.ones((), bool),
        d_position=given.position.astype(WIDE),
        d_momentum=given.momentum.astype(WIDE),
        d_kick=jnp.zeros(own.position.shape, WIDE),
        d_force=given.force.astype(WIDE),
        d_energy=given.energy.astype(WIDE),
        d_mass=jnp.zeros_like(own.mass.astype(WIDE)),
        d_timestep=jnp.zeros((), WIDE),
        d_leaves=tuple(jnp.zeros(jnp.shape(x), WIDE) for x in own.leaves),
        d_constants=tuple(jnp.zeros(jnp.shape(x), WIDE) for x in own.constants),
        step=jnp.asarray(n_steps, jnp.int32),
    )


def _until_observed(
    plan: Plan, own: Inputs, others, lists, given: Reached, back: _Cotangents, observed
) -> _Cotangents:
    """Back over the steps between two observations, from the later one."""
    step = partial(_reverse, plan, own, others, lists)
    n = plan.n_between
    if plan.observe is not None:
        back, n = step(back, given.observed if plan.summed else observed), n - 1
    return jax.lax.scan(lambda b, _: (step(b), None), back, None, n)[0]


def _reverse(plan: Plan, own: Inputs, others, lists, back: _Cotangents, observed=None) -> _Cotangents:
    """Back by one step; `observed` are derivatives with respect to the observation at its end."""
    energy, force, P, X, before, back = _reverse_kick(plan, own, others, lists, back)
    if observed is not None:
        at = Snapshot(
            back.step, to_float(back.X, plan.dtype), to_float(P, own.momentum.dtype), own.mass, force, energy
        )
        back = _through_observation(plan, own, back, at, observed)
    dt, mass = own.timestep, own.mass.astype(WIDE)
    # The second half kick of this step.
    back = back._replace(
        d_force=back.d_force + 0.5 * dt * back.d_momentum,
        d_timestep=back.d_timestep + 0.5 * jnp.sum(force.astype(WIDE) * back.d_momentum),
    )
    back = _through_energy_and_force(plan, own, others, lists, back)
    # The drift before it.
    velocity = to_float(before, WIDE) / mass
    d_momentum = back.d_momentum + dt / mass * back.d_position
    along = jnp.sum(dt * velocity / mass * back.d_position, axis=1, keepdims=True)
    return back._replace(
        X=X,
        half=before,
        d_momentum=d_momentum,
        d_kick=d_momentum,
        d_timestep=back.d_timestep + jnp.sum(velocity * back.d_position),
        d_mass=back.d_mass - along,
        step=back.step - 1,
    )


def _reverse_kick(plan: Plan, own: Inputs, others, lists, back: _Cotangents):
    """`reverse_step`, and the derivative by the force through the first half kick of the following step."""
    energy, force, P, X, before = reverse_step(plan, own, others, lists, back.X, back.half)
    back = back._replace(
        d_force=back.d_force + 0.5 * own.timestep * back.d_kick,
        d_timestep=back.d_timestep + 0.5 * jnp.sum(force.astype(WIDE) * back.d_kick),
    )
    return energy, force, P, X, before, back


def _through_energy_and_force(plan: Plan, own: Inputs, others, lists, back: _Cotangents) -> _Cotangents:
    """From derivatives by energy and force to those by positions, params and region."""
    position = to_float(back.X, plan.dtype)
    _, pull = jax.vjp(
        lambda leaves, R: energy_and_force(plan, leaves, others, lists, R), own.leaves, position
    )
    d_leaves, d_position = pull((back.d_energy.astype(plan.dtype), back.d_force.astype(plan.dtype)))
    return back._replace(
        d_leaves=_add(back.d_leaves, d_leaves),
        d_position=_add(back.d_position, d_position),
        d_force=jnp.zeros_like(back.d_force),
        d_energy=jnp.zeros_like(back.d_energy),
    )


def _through_observation(plan: Plan, own: Inputs, back: _Cotangents, at: Snapshot, observed) -> _Cotangents:
    """From derivatives by an observation to those by what it depends on."""
    observe: Any = plan.observe
    _, pull = jax.vjp(
        lambda constants, *floats: observe(Snapshot(at.step, *floats), *constants), own.constants, *at[1:]
    )
    d_constants, d_position, d_momentum, d_mass, d_force, d_energy = pull(observed)
    return back._replace(
        d_constants=_add(back.d_constants, d_constants),
        d_position=_add(back.d_position, d_position),
        d_momentum=_add(back.d_momentum, d_momentum),
        d_mass=_add(back.d_mass, d_mass),
        d_force=_add(back.d_force, d_force),
        d_energy=_add(back.d_energy, d_energy),
    )


def _add(total, more):
    return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, more)
