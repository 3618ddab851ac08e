"""Gradients through a trajectory at constant energy, in memory that does not grow with its length.

Velocity Verlet on integers is exactly reversible (`gradients.fixed_point`). The
forward pass stores the end and the positions at which lists were rebuilt (three
integers per atom each); the backward pass recomputes everything else in reverse
(`gradients.reverse_pass`).

Both directions must compute the same bits. Forces stand between barriers of
optimisation, so that they compile alike. Lists are rebuilt from stored positions
alone, so the order of neighbours, and of sums over them, is the same in both
directions. Where the reverse integration passes a stored position or the start, it
is compared bit for bit; a difference makes all gradients NaN. On a GPU, sums by
atomics have no fixed order: set XLA_FLAGS=--xla_gpu_deterministic_ops=true.

Thermostats with friction and noise are not reversible: use
`gradients.rollout(..., checkpoint="sqrt")`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from moe_md import units
from moe_md.gradients.fixed_point import (
    Inputs,
    Plan,
    Reached,
    energy_and_force_with_barrier,
    first_lists,
    forward,
    half_kick,
    to_float,
)
from moe_md.gradients.reverse_pass import backward, reverse_integration
from moe_md.gradients.trajectory import Rollout, Snapshot, check_arguments, nan_if
from moe_md.simulate.integrators.nve import NVE


def reversible_rollout(
    energy_fn: Callable,
    integrator: NVE,
    state,
    neighbors,
    n_steps: int,
    *,
    params=None,
    region=None,
    update_every: int | None = 10,
    observe: Callable[[Snapshot], Any] | None = None,
    observe_every: int = 1,
    summed: bool = False,
) -> Rollout:
    """As `gradients.rollout` at constant energy, with gradients in the memory of one step.

    Reverse mode with respect to `params`, `region`, `integrator.timestep_fs`, and
    the state's positions, momenta and masses; no forward mode, and so no
    Hessian-vector products. Gradients of dynamic regions' gates are included.
    Positions are not wrapped into the box.

    Args:
        energy_fn, params, region: as in `rollout`.
        integrator: from `nve`.
        state: its state, or the `State` of an earlier `run`.
        neighbors: lists with sufficient capacity, for positions in Å.
        n_steps: steps to take, at least one.
        update_every: steps after which lists are rebuilt from the positions
            there, which are stored; None uses those given throughout.
        observe: as in `rollout`; may close over what is differentiated.
        observe_every: as in `rollout`; a divisor of `update_every`.
        summed: as in `rollout`; stacked observations take memory for all of them.

    Returns:
        As `rollout`. Values are NaN where a list overflowed or became stale; gradients
        also where the reverse integration did not end at the start.

    Raises:
        ValueError: an argument is out of range or does not fit, 64-bit numbers
            are off (`jax.config.update("jax_enable_x64", True)`), the integrator
            is another one, or positions are fractions.
    """
    plan, inputs = _prepared(
        energy_fn,
        integrator,
        state,
        neighbors,
        n_steps,
        params,
        region,
        update_every,
        observe,
        observe_every,
        summed,
    )
    old = getattr(state, "dynamics", state)
    reached = _rolled(plan, *inputs)
    wrong = reached.overflow | ~reached.finite
    new = old.set(position=reached.position, momentum=reached.momentum, force=reached.force)
    return Rollout(*nan_if((new, reached.energy, reached.observed), wrong), reached.overflow)


class RoundTrip(NamedTuple):
    """The result of integrating forward and in reverse."""

    same: Bool[Array, ""]  # the start was recovered bit for bit
    overflow: Bool[Array, ""]  # as of `Rollout`
    position: Float[Array, "atoms 3"]  # Å, at the end of the forward trajectory
    momentum: Float[Array, "atoms 3"]
    # After the reverse integration: positions and momenta, integers in units of FIXED_POINT_SCALE.
    returned: tuple[Int[Array, "atoms 3"], Int[Array, "atoms 3"]]
    started: tuple[Int[Array, "atoms 3"], Int[Array, "atoms 3"]]  # the same at the start


def round_trip(
    energy_fn: Callable,
    integrator: NVE,
    state,
    neighbors,
    n_steps: int,
    *,
    params=None,
    region=None,
    update_every: int | None = 10,
) -> RoundTrip:
    """Forward and in reverse: whether a device and a potential are reversible bit for bit; under jit.

    Arguments and errors as in `reversible_rollout`.
    """
    plan, inputs = _prepared(
        energy_fn, integrator, state, neighbors, n_steps, params, region, update_every, None, 1, False
    )
    reached, residuals = forward(plan, *inputs)
    start, half, same = reverse_integration(plan, inputs, residuals)
    e, f = energy_and_force_with_barrier(
        plan, inputs[0], inputs[1], first_lists(plan, inputs, residuals), to_float(start, plan.dtype)
    )
    back = half - half_kick(inputs[0].timestep, f)
    same = same & jnp.all(start == residuals.start[0]) & jnp.all(back == residuals.start[1]) & reached.finite
    return RoundTrip(
        same, reached.overflow, reached.position, reached.momentum, (start, back), residuals.start
    )


def _prepared(
    energy_fn,
    integrator,
    state,
    neighbors,
    n_steps,
    params,
    region,
    update_every,
    observe,
    observe_every,
    summed,
):
    """The static plan and the traced inputs, after checks."""
    state = getattr(state, "dynamics", state)
    if type(integrator) is not NVE:
        raise ValueError(
            f"integrator must be from nve for time-reversed integration, got {type(integrator).__name__}, "
            'whose friction or chain is not reversible here: use gradients.rollout(..., checkpoint="sqrt").'
        )
    check_arguments(
        energy_fn,
        integrator,
        state,
        neighbors,
        region,
        n_steps,
        update_every,
        observe,
        1 if observe is None else observe_every,
    )
    if observe is None:
        observe_every = n_steps if update_every is None else update_every
    _check_reversible(integrator, n_steps, update_every, observe_every)
    dtype = state.position.dtype
    leaves, structure = jax.tree.flatten((params, region))
    is_float = tuple(jnp.issubdtype(jnp.result_type(x), jnp.floating) for x in leaves)
    mass = jnp.asarray(state.mass)
    constants: tuple = ()
    if observe is not None:
        like = Snapshot(
            jnp.zeros((), jnp.int32),
            state.position,
            state.momentum,
            mass,
            state.position,
            jnp.zeros((), dtype),
        )
        observe, closed_over = jax.closure_convert(observe, like)
        constants = tuple(closed_over)
    block = n_steps if update_every is None else update_every
    plan = Plan(
        energy_fn,
        n_steps // block,
        block // observe_every,
        observe_every,
        update_every is not None,
        observe,
        summed,
        dtype,
        structure,
        is_float,
    )
    real = tuple(jnp.asarray(x) for x, wanted in zip(leaves, is_float) if wanted)
    others = tuple(x for x, wanted in zip(leaves, is_float) if not wanted)
    timestep = jnp.asarray(integrator.timestep_fs, jnp.float64) * units.fs
    return plan, (
        Inputs(state.position, state.momentum, mass, timestep, real, constants),
        others,
        neighbors,
    )


def _check_reversible(integrator: NVE, n_steps: int, update_every: int | None, observe_every: int) -> None:
    """Raise `ValueError` where steps or coordinates do not allow time-reversed integration."""
    if n_steps < 1:
        raise ValueError(f"n_steps must be at least 1, got {n_steps}.")
    if update_every is not None and update_every % observe_every:
        raise ValueError(
            f"update_every must be a multiple of observe_every = {observe_every}, got {update_every}."
        )
    if jax.dtypes.canonicalize_dtype(np.int64) != np.int64:
        raise ValueError(
            "jax_enable_x64 must be on for positions and momenta in 64-bit integers, got off: "
            'jax.config.update("jax_enable_x64", True); '
            "positions, and so energies, may stay float32."
        )
    with jax.ensure_compile_time_eval():
        move = np.asarray(integrator.shift_fn(jnp.full((1, 3), 1e-3), jnp.full((1, 3), 1e-3)))
    if not np.allclose(move, 2e-3, rtol=1e-4):
        raise ValueError(
            "shift_fn of the integrator must take positions in Å, got one of fractional coordinates: "
            "use gradients.rollout."
        )


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rolled(plan: Plan, inputs: Inputs, others, neighbors) -> Reached:
    return forward(plan, inputs, others, neighbors)[0]


def _rolled_fwd(plan: Plan, inputs: Inputs, others, neighbors):
    reached, residuals = forward(plan, inputs, others, neighbors)
    return reached, (inputs, others, neighbors, residuals)


def _rolled_bwd(plan: Plan, residuals, given: Reached):
    *inputs, residuals = residuals
    return backward(plan, tuple(inputs), residuals, given), None, None


_rolled.defvjp(_rolled_fwd, _rolled_bwd)
