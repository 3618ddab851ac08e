"""Velocity Verlet on 64-bit integers: the forward pass of a reversible rollout.

With X and P positions and momenta in units of q (64-bit integers), f the force at
X q and [.] rounding, a step is

    P <- P + [dt f / 2q]      X <- X + [dt P / m]      P <- P + [dt f / 2q]

Subtracting the same increments in the opposite order reverses it exactly: rounding
loses no information (Levesque, Verlet, J. Stat. Phys. 72, 519 (1993)).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from moe_md.gradients.trajectory import Snapshot

FIXED_POINT_SCALE = 2.0**-44  # of positions in Å and of momenta in sqrt(amu eV); they reach 5e5


class Plan(NamedTuple):
    """Static configuration of a reversible rollout."""

    energy_fn: Callable
    n_blocks: int  # of steps with one neighbour list
    n_observations: int  # observations in a block
    n_between: int  # steps between observations
    rebuild: bool  # whether lists are rebuilt for each block
    observe: Callable | None  # (Snapshot, *constants)
    summed: bool
    dtype: Any  # of positions and forces
    structure: Any  # of (params, region)
    is_float: tuple[bool, ...]  # their leaves


class Inputs(NamedTuple):
    """The differentiable inputs."""

    position: Float[Array, "atoms 3"]
    momentum: Float[Array, "atoms 3"]
    mass: Float[Array, "atoms 1"]
    timestep: Float[Array, ""]  # float64, in Å sqrt(amu / eV)
    leaves: tuple[Array, ...]  # floating-point leaves of (params, region)
    constants: tuple[Array, ...]  # arrays that `observe` closes over


class Reached(NamedTuple):
    """The outputs."""

    position: Float[Array, "atoms 3"]
    momentum: Float[Array, "atoms 3"]
    force: Float[Array, "atoms 3"]
    energy: Float[Array, ""]
    observed: Any
    overflow: Bool[Array, ""]
    finite: Bool[Array, ""]


class Residuals(NamedTuple):
    """What the backward pass needs."""

    start: tuple[Int[Array, "atoms 3"], Int[Array, "atoms 3"]]  # positions and momenta, int64
    end: tuple[Int[Array, "atoms 3"], Int[Array, "atoms 3"]]  # positions, and momenta half a step later
    stored_positions: Int[Array, "blocks atoms 3"] | None  # for which lists were built


def to_fixed_point(x: Float[Array | np.ndarray, "*shape"]) -> Int[Array, "*shape"]:
    """The nearest multiple of `FIXED_POINT_SCALE`, as int64."""
    return jnp.round(x.astype(jnp.float64) / FIXED_POINT_SCALE).astype(jnp.int64)


def to_float(X: Int[Array, "*shape"], dtype) -> Float[Array, "*shape"]:
    """The inverse of `to_fixed_point`."""
    return (X.astype(jnp.float64) * FIXED_POINT_SCALE).astype(dtype)


def half_kick(timestep: Float[Array, ""], force: Float[Array, "atoms 3"]) -> Int[Array, "atoms 3"]:
    """Increment of P in half a step."""
    return jnp.round(force.astype(jnp.float64) * (0.5 / FIXED_POINT_SCALE * timestep)).astype(jnp.int64)


def drift(
    timestep: Float[Array, ""], mass: Float[Array, "atoms 1"], P: Int[Array, "atoms 3"]
) -> Int[Array, "atoms 3"]:
    """Increment of X in a step."""
    return jnp.round(P.astype(jnp.float64) * (timestep / mass.astype(jnp.float64))).astype(jnp.int64)


def arguments_of(plan: Plan, leaves, others) -> dict:
    """`params` and `region` as keyword arguments."""
    real, rest = iter(leaves), iter(others)
    params, region = jax.tree.unflatten(
        plan.structure, [next(real if wanted else rest) for wanted in plan.is_float]
    )
    return {name: value for name, value in (("params", params), ("region", region)) if value is not None}


def energy_and_force(
    plan: Plan, leaves, others, lists, position: Float[Array, "atoms 3"]
) -> tuple[Float[Array, ""], Float[Array, "atoms 3"]]:
    """Energy and force."""
    given = arguments_of(plan, leaves, others)
    energy, gradient = jax.value_and_grad(lambda R: plan.energy_fn(R, neighbor=lists, **given))(position)
    return energy.astype(plan.dtype), -gradient.astype(plan.dtype)


def energy_and_force_with_barrier(
    plan: Plan, inputs: Inputs, others, lists, position: Float[Array, "atoms 3"]
) -> tuple[Float[Array, ""], Float[Array, "atoms 3"]]:
    """`energy_and_force` between barriers of optimisation, so that it compiles alike in both directions."""
    leaves, others, lists, position = jax.lax.optimization_barrier((inputs.leaves, others, lists, position))
    return jax.lax.optimization_barrier(energy_and_force(plan, leaves, others, lists, position))


def lists_at(plan: Plan, inputs: Inputs, others, neighbors, X: Int[Array, "atoms 3"]) -> Any:
    """Lists that depend on nothing but X; or those given."""
    if not plan.rebuild:
        return neighbors
    position, region, neighbors = jax.lax.optimization_barrier(
        jax.lax.stop_gradient((to_float(X, plan.dtype), _region(plan, inputs, others), neighbors))
    )
    return jax.lax.optimization_barrier(neighbors.update(position, renew=True, **region))


def first_lists(plan: Plan, inputs: tuple, residuals: Residuals) -> Any:
    """Lists of the start."""
    return lists_at(plan, *inputs, residuals.start[0])


class _Carry(NamedTuple):
    """State of the forward loop."""

    X: Array
    P: Array
    force: Array
    energy: Array
    step: Array
    overflow: Array
    finite: Array
    total: Any


def snapshot(plan: Plan, inputs: Inputs, carry: _Carry) -> Snapshot:
    return Snapshot(
        carry.step,
        to_float(carry.X, plan.dtype),
        to_float(carry.P, inputs.momentum.dtype),
        inputs.mass,
        carry.force,
        carry.energy,
    )


def forward(plan: Plan, inputs: Inputs, others, neighbors) -> tuple[Reached, Residuals]:
    """The trajectory, and what the backward pass needs of it."""
    start = to_fixed_point(inputs.position), to_fixed_point(inputs.momentum)
    carry = _first_carry(plan, inputs, others, neighbors, start)

    def block(carry: _Carry, _):
        lists = lists_at(plan, inputs, others, neighbors, carry.X)
        stored = carry.X if plan.rebuild else None
        carry = carry._replace(overflow=carry.overflow | lists.did_buffer_overflow)
        advance = partial(_until_observed, plan, inputs, others, lists)
        carry, observed = jax.lax.scan(lambda c, _: advance(c), carry, None, plan.n_observations)
        return carry, (stored, observed)

    carry, (stored_positions, observed) = jax.lax.scan(block, carry, None, plan.n_blocks)
    if plan.observe is not None and plan.summed:
        observed = carry.total
    elif plan.observe is not None:
        observed = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), observed)
    at = snapshot(plan, inputs, carry)
    reached = Reached(
        at.position, at.momentum, carry.force, carry.energy, observed, carry.overflow, carry.finite
    )
    end = carry.X, carry.P + half_kick(inputs.timestep, carry.force)
    return reached, Residuals(start, end, stored_positions)


def _first_carry(plan: Plan, inputs: Inputs, others, neighbors, start: tuple[Array, Array]) -> _Carry:
    lists = lists_at(plan, inputs, others, neighbors, start[0])
    position = to_float(start[0], plan.dtype)
    energy, force = energy_and_force_with_barrier(plan, inputs, others, lists, position)
    stale = lists.stale(position, **_region(plan, inputs, others))
    finite = jnp.all(jnp.isfinite(force))
    carry = _Carry(*start, force, energy, jnp.zeros((), jnp.int32), stale, finite, None)
    if plan.observe is not None and plan.summed:
        shapes = jax.eval_shape(plan.observe, snapshot(plan, inputs, carry), *inputs.constants)
        carry = carry._replace(total=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))
    return carry


def _step(plan: Plan, inputs: Inputs, others, lists, carry: _Carry) -> _Carry:
    P = carry.P + half_kick(inputs.timestep, carry.force)
    X = carry.X + drift(inputs.timestep, inputs.mass, P)
    position = to_float(X, plan.dtype)
    energy, force = energy_and_force_with_barrier(plan, inputs, others, lists, position)
    overflow = carry.overflow | lists.stale(position, **_region(plan, inputs, others))
    finite = carry.finite & jnp.all(jnp.isfinite(force)) & jnp.isfinite(energy)
    P = P + half_kick(inputs.timestep, force)
    return _Carry(X, P, force, energy, carry.step + 1, overflow, finite, carry.total)


def _until_observed(plan: Plan, inputs: Inputs, others, lists, carry: _Carry) -> tuple[_Carry, Any]:
    step = partial(_step, plan, inputs, others, lists)
    carry, _ = jax.lax.scan(lambda c, _: (step(c), None), carry, None, plan.n_between)
    if plan.observe is None:
        return carry, None
    observed = plan.observe(snapshot(plan, inputs, carry), *inputs.constants)
    if not plan.summed:
        return carry, observed
    return carry._replace(total=jax.tree.map(jnp.add, carry.total, observed)), None


def _region(plan: Plan, inputs: Inputs, others) -> dict:
    return {k: v for k, v in arguments_of(plan, inputs.leaves, others).items() if k == "region"}
