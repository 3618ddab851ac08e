"""Trajectories that are differentiable from end to end.

`rollout` is a pure function of state, integrator (time step, temperature,
friction), parameters, region and box. Reverse mode for gradients with respect to
many numbers, forward mode for few, and Hessian-vector products (forward over
reverse) all work; so do `jit` and `vmap`.

Memory. Reverse mode stores what every step computed. With `checkpoint` it stores
states at the start of segments and recomputes the steps
(`gradients.checkpointing`). `gradients.reversible_rollout` stores none, at
constant energy.

Neighbour lists are piecewise constant in the positions and have no derivative:
the energy is independent of pairs beyond its cutoffs. The gate's derivative is
part of the energy's own. A list that overflowed, or was not rebuilt before atoms
left its skin, sets `overflow` and turns all values of the result, and so their
gradients, into NaN.

Long times. Gradients grow as exp(t / Lyapunov time): beyond a few of those times
they are exact, and of no use.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Real

from moe_md.gradients.checkpointing import levels_for, nested_scan, scan
from moe_md.gradients.trajectory import (
    Rollout,
    Snapshot,
    check_arguments,
    nan_if,
    shifted_fractions,
    unpacked,
)
from moe_md.neighbors.neighbor_list import box_matrix
from moe_md.simulate.advance import given
from moe_md.simulate.integrators.base import Evaluation
from moe_md.simulate.integrators.langevin import Langevin
from moe_md.simulate.integrators.nose_hoover import NoseHoover
from moe_md.simulate.integrators.nve import NVE
from moe_md.simulate.step import like, md_step


def rollout(
    energy_fn: Callable,
    integrator: NVE | Langevin | NoseHoover,
    state,
    neighbors,
    n_steps: int,
    *,
    params=None,
    region=None,
    box: Real[ArrayLike, "..."] | Sequence | None = None,
    update_every: int | None = 1,
    checkpoint: str | int | None = None,
    observe: Callable[[Snapshot], Any] | None = None,
    observe_every: int = 1,
    summed: bool = False,
) -> Rollout:
    """A trajectory as a pure function of its inputs.

    Differentiate with respect to `params`, `region` (radii, widths), `box`, the
    `integrator` (a pytree; within a traced function change it with
    `dataclasses.replace`, as `nve` and `langevin` check numbers) and the state
    (`integrator.init(position, momentum, masses, key, box)` makes one). Random
    numbers follow from the state's key, so that a thermostat's gradient is that
    of one realisation. A friction of zero has no derivative: NaN.

    Args:
        energy_fn: `energy_fn(R, neighbor=, params=, region=, box=)` in eV, from
            `mixture_neighbor_list`.
        integrator: from `nve`, `langevin` or `nose_hoover`.
        state: its state, or the `State` of an earlier `run`. Forces are
            recomputed.
        neighbors: lists with sufficient capacity, allocated with `region` and `box`.
        n_steps: steps to take.
        params, region: default the builder's.
        box: Å, where the energy takes one (fractional coordinates). Derivatives
            with respect to fractional positions are then per Å, as jax-md's
            forces are; a loss must convert such positions with
            `displacement_fn` or `space.transform(box, R)`.
        update_every: 1: lists are checked before each force, as in `run`. k: they
            are rebuilt at every k-th step and not in between. None: those given
            are used throughout.
        checkpoint: None stores what each step computed, "sqrt" O(sqrt(n_steps))
            states, a number at most that many states.
        observe: function of a `Snapshot` to any pytree of arrays, differentiable.
        observe_every: steps between observations; the first is after that many steps.
        summed: add observations instead of stacking them: memory for one.

    Returns:
        The last state, and what was observed, `[n_steps / observe_every, ...]`
        each. Where `overflow` is set all numbers are NaN; `check_rollout` raises.

    Raises:
        ValueError: an argument is out of range or does not fit; the integrator
            changes the box or takes multiple time steps; a gate of the region has
            jumps (`regions.reassigned`).
    """
    state, box = unpacked(state, box)
    check_arguments(
        energy_fn, integrator, state, neighbors, region, n_steps, update_every, observe, observe_every, box
    )
    box = None if box is None else box_matrix(box)
    if box is not None:
        integrator = replace(integrator, shift_fn=partial(shifted_fractions, integrator.shift_fn))
    block = 1 if update_every in (1, None) else update_every
    unit = max(block, observe_every)
    levels = levels_for(checkpoint, n_steps, unit)
    plan = _Plan(
        energy_fn,
        integrator,
        box,
        given(params=params, region=region, box=box),
        update_every,
        block,
        observe,
        observe_every,
        summed,
        levels > 0,
    )
    carry = _start(plan, state, neighbors)
    carry, seen = nested_scan(partial(_unit, plan, neighbors), carry, n_steps // unit, levels)
    if unit > observe_every:
        seen = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), seen)
    seen = None if observe is None else carry.total if summed else seen
    return Rollout(*nan_if((carry.state, carry.energy, seen), carry.overflow), carry.overflow)


class _Plan(NamedTuple):
    """What stays the same during a rollout."""

    energy_fn: Callable
    integrator: Any
    box: Real[Array | np.ndarray, "3 3"] | None  # Å
    given: dict  # `params`, `region` and `box` of the energy
    update_every: int | None
    block: int  # steps between rebuilds, 1 where lists are checked at each step or never
    observe: Callable | None
    observe_every: int
    summed: bool
    recompute: bool  # steps are recomputed in reverse mode


class _Carry(NamedTuple):
    """State of the loop over steps."""

    state: Any
    lists: Any  # where they are checked before each force, else None
    energy: Float[Array, ""]  # eV
    overflow: Bool[Array, ""]
    step: Int[Array, ""]
    total: Any  # sum of observations, where they are summed


def _start(plan: _Plan, state, neighbors) -> _Carry:
    lists, wrong = _lists_at(plan, state.position, neighbors, True)
    evaluation = _evaluate(plan, state.position, lists)
    state = like(state, plan.integrator.set_forces(state, evaluation))
    kept = lists if plan.update_every == 1 else None
    energy = evaluation.energy.astype(state.position.dtype)
    carry = _Carry(state, kept, energy, wrong, jnp.zeros((), jnp.int32), None)
    if plan.observe is not None and plan.summed:
        shapes = jax.eval_shape(plan.observe, _snapshot(carry))
        carry = carry._replace(total=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))
    return carry


def _evaluate(plan: _Plan, position, lists) -> Evaluation:
    return plan.integrator.evaluate(
        plan.energy_fn, jnp.zeros((), int), position, neighbor=lists, **plan.given
    )


def _lists_at(plan: _Plan, position, lists, rebuild: bool):
    """The lists for a position, and whether they miss pairs there."""
    keywords = {name: plan.given[name] for name in plan.given if name != "params"}
    position, keywords = jax.lax.stop_gradient((position, keywords))
    in_blocks = plan.update_every != 1
    if plan.update_every is None or (in_blocks and not rebuild):
        return lists, jnp.asarray(lists.did_buffer_overflow, bool) | lists.stale(position, **keywords)
    lists = lists.update(position, **keywords, **({"renew": True} if in_blocks else {}))
    return lists, jnp.asarray(lists.did_buffer_overflow, bool)


def _step(plan: _Plan, lists, carry: _Carry) -> tuple[_Carry, None]:
    """One step, with the given lists, or those of the carry where they are None."""

    def evaluate(position, box):
        del box
        current, wrong = _lists_at(plan, position, carry.lists if lists is None else lists, False)
        return _evaluate(plan, position, current), (current, wrong)

    new, _, evaluation, (current, wrong) = md_step(plan.integrator, carry.state, plan.box, evaluate)
    energy = evaluation.energy.astype(new.position.dtype)
    kept = current if lists is None else None
    return _Carry(new, kept, energy, carry.overflow | wrong, carry.step + 1, carry.total), None


def _steps(plan: _Plan, lists, carry: _Carry, n: int) -> _Carry:
    body = partial(_step, plan, lists)
    if plan.recompute:
        body = jax.checkpoint(body, prevent_cse=False)
    return body(carry)[0] if n == 1 else scan(body, carry, n)[0]


def _observe(plan: _Plan, carry: _Carry) -> tuple[_Carry, Any]:
    if plan.observe is None:
        return carry, None
    seen = plan.observe(_snapshot(carry))
    if not plan.summed:
        return carry, seen
    return carry._replace(total=jax.tree.map(jnp.add, carry.total, seen)), None


def _until_observed(plan: _Plan, lists, carry: _Carry) -> tuple[_Carry, Any]:
    return _observe(plan, _steps(plan, lists, carry, plan.observe_every))


def _rebuilt(plan: _Plan, neighbors, carry: _Carry):
    lists, wrong = _lists_at(plan, carry.state.position, neighbors, True)
    return lists, carry._replace(overflow=carry.overflow | wrong)


def _unit(plan: _Plan, neighbors, carry: _Carry) -> tuple[_Carry, Any]:
    """As many steps as both rebuilds and observations divide."""
    if plan.block == 1:
        return _until_observed(plan, neighbors if plan.update_every is None else None, carry)
    if plan.block >= plan.observe_every:
        lists, carry = _rebuilt(plan, neighbors, carry)
        return scan(partial(_until_observed, plan, lists), carry, plan.block // plan.observe_every)

    def one_block(carry: _Carry):
        lists, carry = _rebuilt(plan, neighbors, carry)
        return _steps(plan, lists, carry, plan.block), None

    return _observe(plan, scan(one_block, carry, plan.observe_every // plan.block)[0])


def _snapshot(carry: _Carry) -> Snapshot:
    s = carry.state
    return Snapshot(carry.step, s.position, s.momentum, s.mass, s.force, carry.energy)
