"""Gradients through a trajectory that is walked back in time: memory does not grow with its length.

Velocity Verlet on whole numbers. With X and P positions and momenta in units of
q (64-bit integers), f the force at X q and [.] rounding,

    P <- P + [dt f / 2q]      X <- X + [dt P / m]      P <- P + [dt f / 2q]

is undone exactly, by subtracting what was added, in the opposite order: rounding
takes nothing away that could not be found again (Levesque, Verlet, J. Stat.
Phys. 72, 519 (1993)). So nothing is kept for the way back but the end. There the
adjoint equations of velocity Verlet are solved while the trajectory unwinds
(Greener, Nat. Commun. 2025, doi 10.1038/s41467-025-63127-4, for force fields).

Both ways must compute the same bits. Forces stand between barriers of
optimisation, so that they are compiled alike; lists are made anew from nothing
but the positions of fixed steps, which are kept (three integers an atom each),
so the order of neighbours, and with it that of sums, is the same on the way
back. Where the way back meets one of those positions, or the start, it is
compared bit for bit: were it another, all gradients would be NaN. On a GPU sums
by atomics have no fixed order: set XLA_FLAGS=--xla_gpu_deterministic_ops=true.

Friction and noise forget, bit by bit: a thermostat's gradients are for
`gradients.rollout(..., checkpoint="sqrt")`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from moe_md import units
from moe_md.gradients.trajectory import Rollout, Snapshot, check_arguments, nan_if
from moe_md.simulate.integrators.nve import NVE

QUANTUM = 2.0**-44  # of positions in Å and of momenta in sqrt(amu eV); they reach 5e5


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
    """As `gradients.rollout` at constant energy, its gradient in memory for one step.

    Reverse mode with respect to `params`, `region`, `integrator.timestep_fs`, and
    the state's positions, momenta and masses; no forward mode, and so no
    Hessian-vector products. Where regions move their gates' gradients are part of
    it. Positions are not wrapped into the box.

    Args:
        energy_fn, params, region: as in `rollout`.
        integrator: from `nve`.
        state: its state, or the `State` of an earlier `run`.
        neighbors: a list with room enough, for positions in Å.
        n_steps: steps to take, at least one.
        update_every: steps after which lists are made anew, from the positions
            there, which are kept; None holds those given.
        observe: as in `rollout`; may close over what is differentiated.
        observe_every: as in `rollout`; a divisor of `update_every`.
        summed: as in `rollout`; stacked observations take memory for all of them.

    Returns:
        As `rollout`. Numbers are NaN where a list did not hold; gradients also
        where the way back did not end at the start.

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
    """What came of walking there and back."""

    same: Array  # bool, every bit of the start was found again
    overflow: Array  # bool, as of `Rollout`
    position: Array  # [n_atoms, 3] Å, the far end
    momentum: Array  # [n_atoms, 3]
    returned: tuple[Array, Array]  # positions and momenta after the way back, integers in units of QUANTUM
    started: tuple[Array, Array]  # before it


def round_trip(
    energy_fn,
    integrator,
    state,
    neighbors,
    n_steps: int,
    *,
    params=None,
    region=None,
    update_every: int | None = 10,
) -> RoundTrip:
    """There and back, to see whether a device and a potential are reversible bit for bit; under jit.

    Arguments and errors as of `reversible_rollout`.
    """
    plan, inputs = _prepared(
        energy_fn, integrator, state, neighbors, n_steps, params, region, update_every, None, 1, False
    )
    reached, kept = _forth(plan, *inputs)
    start, half, same = _walk_back(plan, inputs, kept)
    e, f = _energy_and_force(
        plan, inputs[0], inputs[1], _first_lists(plan, inputs, kept), _float(start, plan.dtype)
    )
    back = half - _kick(inputs[0].timestep, f)
    same = same & jnp.all(start == kept.start[0]) & jnp.all(back == kept.start[1]) & reached.finite
    return RoundTrip(same, reached.overflow, reached.position, reached.momentum, (start, back), kept.start)


class _Plan(NamedTuple):
    """What is not traced."""

    energy_fn: Callable
    n_blocks: int  # with one list each
    n_looks: int  # observations in a block
    n_between: int  # steps from one to the next
    renew: bool  # whether lists are made anew
    observe: Callable | None  # (Snapshot, *constants)
    summed: bool
    dtype: Any  # of positions and forces
    structure: Any  # of (params, region)
    is_float: tuple[bool, ...]  # their leaves


class _Inputs(NamedTuple):
    """What is differentiated with respect to."""

    position: Array
    momentum: Array
    mass: Array  # [n_atoms, 1]
    timestep: Array  # float64, in Å sqrt(amu / eV)
    leaves: tuple[Array, ...]  # the real numbers of (params, region)
    constants: tuple[Array, ...]  # what `observe` closes over


class _Reached(NamedTuple):
    """What comes out."""

    position: Array
    momentum: Array
    force: Array
    energy: Array
    observed: Any
    overflow: Array
    finite: Array


class _Kept(NamedTuple):
    """What the way back needs."""

    start: tuple[Array, Array]  # [n_atoms, 3] int64
    end: tuple[Array, Array]  # the momenta half a step further
    places: Array  # [n_blocks, n_atoms, 3] int64, where lists were made


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
    """A plan, and what is traced; checks first."""
    state = getattr(state, "dynamics", state)
    if type(integrator) is not NVE:
        raise ValueError(
            f"integrator must be from nve to be walked back in time, got {type(integrator).__name__}, "
            'which forgets: use gradients.rollout(..., checkpoint="sqrt").'
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
    if n_steps < 1:
        raise ValueError(f"n_steps must be at least 1, got {n_steps}.")
    if observe is None:
        observe_every = n_steps if update_every is None else update_every
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
    plan = _Plan(
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
        _Inputs(state.position, state.momentum, mass, timestep, real, constants),
        others,
        neighbors,
    )


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rolled(plan: _Plan, inputs: _Inputs, others, neighbors) -> _Reached:
    return _forth(plan, inputs, others, neighbors)[0]


def _rolled_fwd(plan: _Plan, inputs: _Inputs, others, neighbors):
    reached, kept = _forth(plan, inputs, others, neighbors)
    return reached, (inputs, others, neighbors, kept)


def _rolled_bwd(plan: _Plan, residuals, given: _Reached):
    *inputs, kept = residuals
    return _back(plan, tuple(inputs), kept, given), None, None


_rolled.defvjp(_rolled_fwd, _rolled_bwd)


# On whole numbers ------------------------------------------------------------


def _whole(x: Array) -> Array:
    return jnp.round(x.astype(jnp.float64) / QUANTUM).astype(jnp.int64)


def _float(X: Array, dtype) -> Array:
    return (X.astype(jnp.float64) * QUANTUM).astype(dtype)


def _kick(timestep: Array, force: Array) -> Array:
    """What half a step adds to P."""
    return jnp.round(force.astype(jnp.float64) * (0.5 / QUANTUM * timestep)).astype(jnp.int64)


def _drift(timestep: Array, mass: Array, P: Array) -> Array:
    """What a step adds to X."""
    return jnp.round(P.astype(jnp.float64) * (timestep / mass.astype(jnp.float64))).astype(jnp.int64)


def _arguments(plan: _Plan, leaves, others) -> dict:
    """`params` and `region`."""
    real, rest = iter(leaves), iter(others)
    params, region = jax.tree.unflatten(
        plan.structure, [next(real if wanted else rest) for wanted in plan.is_float]
    )
    return {name: value for name, value in (("params", params), ("region", region)) if value is not None}


def _plain(plan: _Plan, leaves, others, lists, position) -> tuple[Array, Array]:
    """Energy and force."""
    given = _arguments(plan, leaves, others)
    energy, gradient = jax.value_and_grad(lambda R: plan.energy_fn(R, neighbor=lists, **given))(position)
    return energy.astype(plan.dtype), -gradient.astype(plan.dtype)


def _energy_and_force(plan: _Plan, inputs: _Inputs, others, lists, position) -> tuple[Array, Array]:
    """The same, compiled alike wherever it stands."""
    leaves, others, lists, position = jax.lax.optimization_barrier((inputs.leaves, others, lists, position))
    return jax.lax.optimization_barrier(_plain(plan, leaves, others, lists, position))


def _lists_at(plan: _Plan, inputs: _Inputs, others, neighbors, X: Array):
    """Lists that follow from a place alone; or those given."""
    if not plan.renew:
        return neighbors
    region = {k: v for k, v in _arguments(plan, inputs.leaves, others).items() if k == "region"}
    position, region, neighbors = jax.lax.optimization_barrier(
        jax.lax.stop_gradient((_float(X, plan.dtype), region, neighbors))
    )
    return jax.lax.optimization_barrier(neighbors.update(position, renew=True, **region))


def _first_lists(plan: _Plan, inputs, kept: _Kept):
    return _lists_at(plan, *inputs, kept.start[0])


# There -----------------------------------------------------------------------


class _Here(NamedTuple):
    """The carry of the way there."""

    X: Array
    P: Array
    force: Array
    energy: Array
    step: Array
    overflow: Array
    finite: Array
    total: Any


def _snapshot(plan: _Plan, inputs: _Inputs, here: _Here) -> Snapshot:
    return Snapshot(
        here.step,
        _float(here.X, plan.dtype),
        _float(here.P, inputs.momentum.dtype),
        inputs.mass,
        here.force,
        here.energy,
    )


def _forth(plan: _Plan, inputs: _Inputs, others, neighbors) -> tuple[_Reached, _Kept]:
    region = {k: v for k, v in _arguments(plan, inputs.leaves, others).items() if k == "region"}

    def step(here: _Here, lists) -> _Here:
        P = here.P + _kick(inputs.timestep, here.force)
        X = here.X + _drift(inputs.timestep, inputs.mass, P)
        position = _float(X, plan.dtype)
        energy, force = _energy_and_force(plan, inputs, others, lists, position)
        overflow = here.overflow | lists.stale(position, **region)
        finite = here.finite & jnp.all(jnp.isfinite(force)) & jnp.isfinite(energy)
        return _Here(
            X, P + _kick(inputs.timestep, force), force, energy, here.step + 1, overflow, finite, here.total
        )

    def look(here: _Here, lists):
        here, _ = jax.lax.scan(lambda h, _: (step(h, lists), None), here, None, plan.n_between)
        if plan.observe is None:
            return here, None
        seen = plan.observe(_snapshot(plan, inputs, here), *inputs.constants)
        return (
            (here._replace(total=jax.tree.map(jnp.add, here.total, seen)), None)
            if plan.summed
            else (here, seen)
        )

    def block(here: _Here, _):
        lists = _lists_at(plan, inputs, others, neighbors, here.X)
        place = here.X if plan.renew else None
        here = here._replace(overflow=here.overflow | lists.did_buffer_overflow)
        here, seen = jax.lax.scan(lambda h, _: look(h, lists), here, None, plan.n_looks)
        return here, (place, seen)

    start = _whole(inputs.position), _whole(inputs.momentum)
    lists = _lists_at(plan, inputs, others, neighbors, start[0])
    position = _float(start[0], plan.dtype)
    energy, force = _energy_and_force(plan, inputs, others, lists, position)
    here = _Here(
        *start,
        force,
        energy,
        jnp.zeros((), jnp.int32),
        lists.stale(position, **region),
        jnp.all(jnp.isfinite(force)),
        None,
    )
    if plan.observe is not None and plan.summed:
        shapes = jax.eval_shape(plan.observe, _snapshot(plan, inputs, here), *inputs.constants)
        here = here._replace(total=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))
    here, (places, seen) = jax.lax.scan(block, here, None, plan.n_blocks)
    if plan.observe is not None:
        seen = here.total if plan.summed else jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), seen)
    at = _snapshot(plan, inputs, here)
    reached = _Reached(at.position, at.momentum, here.force, here.energy, seen, here.overflow, here.finite)
    return reached, _Kept(start, (here.X, here.P + _kick(inputs.timestep, here.force)), places)


# And back --------------------------------------------------------------------


def _undone(plan: _Plan, inputs: _Inputs, others, lists, X: Array, half: Array):
    """From X and the P of half a step later to the step before.

    Returns energy, force and P at X, then X and P of half a step earlier and before.
    """
    energy, force = _energy_and_force(plan, inputs, others, lists, _float(X, plan.dtype))
    kick = _kick(inputs.timestep, force)
    P = half - kick
    before = P - kick
    return energy, force, P, X - _drift(inputs.timestep, inputs.mass, before), before


def _walk_back(plan: _Plan, inputs, kept: _Kept) -> tuple[Array, Array, Array]:
    """Without cotangents.

    Returns where the way back ends, P half a step later, and whether it met the places kept.
    """

    def block(carry, place):
        X, half, same = carry
        lists = _lists_at(plan, *inputs, place if plan.renew else X)

        def one(carry, _):
            return _undone(plan, inputs[0], inputs[1], lists, *carry)[3:], None

        (X, half), _ = jax.lax.scan(one, (X, half), None, plan.n_looks * plan.n_between)
        return (X, half, same & (jnp.all(place == X) if plan.renew else True)), None

    return jax.lax.scan(block, (*kept.end, jnp.ones((), bool)), kept.places, plan.n_blocks, reverse=True)[0]


class _Back(NamedTuple):
    """The carry of the way back: derivatives of the loss."""

    X: Array
    half: Array
    same: Array
    of_position: Array
    of_momentum: Array
    of_kick: Array  # of the momenta after the first half kick of the step after; zero at the end
    of_force: Array  # what is asked of the force itself
    of_energy: Array
    of_mass: Array
    of_timestep: Array
    of_leaves: tuple[Array, ...]  # float64
    of_constants: tuple[Array, ...]
    step: Array


def _add(total, more):
    return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, more)


def _back(plan: _Plan, inputs, kept: _Kept, given: _Reached) -> _Inputs:
    own, others, _ = inputs
    dt, mass, wide = own.timestep, own.mass.astype(jnp.float64), jnp.float64
    per_block = plan.n_looks * plan.n_between

    def force_at(back: _Back, lists):
        """What happens at one place.

        Its force kicked twice, was observed, and depends on position, params and region.
        """
        energy, force, P, X, before = _undone(plan, own, others, lists, back.X, back.half)
        of_timestep = back.of_timestep + 0.5 * jnp.sum(force.astype(wide) * back.of_kick)
        return (
            energy,
            force,
            P,
            X,
            before,
            back._replace(of_force=back.of_force + 0.5 * dt * back.of_kick, of_timestep=of_timestep),
        )

    def pulled(back: _Back, lists) -> _Back:
        """Through energy and force."""
        position = _float(back.X, plan.dtype)
        _, pull = jax.vjp(lambda leaves, R: _plain(plan, leaves, others, lists, R), own.leaves, position)
        of_leaves, of_position = pull((back.of_energy.astype(plan.dtype), back.of_force.astype(plan.dtype)))
        return back._replace(
            of_leaves=_add(back.of_leaves, of_leaves),
            of_position=_add(back.of_position, of_position),
            of_force=jnp.zeros_like(back.of_force),
            of_energy=jnp.zeros_like(back.of_energy),
        )

    def undo(back: _Back, lists, asked=None) -> _Back:
        energy, force, P, X, before, back = force_at(back, lists)
        observe = plan.observe
        if observe is not None and asked is not None:
            seen = Snapshot(
                back.step, _float(back.X, plan.dtype), _float(P, own.momentum.dtype), own.mass, force, energy
            )
            _, pull = jax.vjp(
                lambda constants, *floats: observe(Snapshot(seen.step, *floats), *constants),
                own.constants,
                *seen[1:],
            )
            of_constants, of_position, of_momentum, of_mass, of_force, of_energy = pull(asked)
            back = back._replace(
                of_constants=_add(back.of_constants, of_constants),
                of_position=_add(back.of_position, of_position),
                of_momentum=_add(back.of_momentum, of_momentum),
                of_mass=_add(back.of_mass, of_mass),
                of_force=_add(back.of_force, of_force),
                of_energy=_add(back.of_energy, of_energy),
            )
        # The second half kick of the step that led here.
        back = back._replace(
            of_force=back.of_force + 0.5 * dt * back.of_momentum,
            of_timestep=back.of_timestep + 0.5 * jnp.sum(force.astype(wide) * back.of_momentum),
        )
        back = pulled(back, lists)
        # The drift before it.
        velocity = _float(before, wide) / mass
        of_momentum = back.of_momentum + dt / mass * back.of_position
        return back._replace(
            X=X,
            half=before,
            of_momentum=of_momentum,
            of_kick=of_momentum,
            of_timestep=back.of_timestep + jnp.sum(velocity * back.of_position),
            of_mass=back.of_mass - jnp.sum(dt * velocity / mass * back.of_position, axis=1, keepdims=True),
            step=back.step - 1,
        )

    def look(back: _Back, asked, lists) -> tuple[_Back, None]:
        if plan.observe is None:
            return jax.lax.scan(lambda b, _: (undo(b, lists), None), back, None, plan.n_between)[0], None
        back = undo(back, lists, given.observed if plan.summed else asked)
        return jax.lax.scan(lambda b, _: (undo(b, lists), None), back, None, plan.n_between - 1)[0], None

    def block(back: _Back, kept_here) -> tuple[_Back, None]:
        place, asked = kept_here
        lists = _lists_at(plan, *inputs, place if plan.renew else back.X)
        back, _ = jax.lax.scan(partial(look, lists=lists), back, asked, plan.n_looks, reverse=True)
        return back._replace(same=back.same & (jnp.all(place == back.X) if plan.renew else True)), None

    asked = None
    if plan.observe is not None and not plan.summed:
        asked = jax.tree.map(lambda x: x.reshape(plan.n_blocks, plan.n_looks, *x.shape[1:]), given.observed)
    X, half = kept.end
    back = _Back(
        X=X,
        half=half,
        same=jnp.ones((), bool),
        of_position=given.position.astype(wide),
        of_momentum=given.momentum.astype(wide),
        of_kick=jnp.zeros(own.position.shape, wide),
        of_force=given.force.astype(wide),
        of_energy=given.energy.astype(wide),
        of_mass=jnp.zeros_like(mass),
        of_timestep=jnp.zeros((), wide),
        of_leaves=tuple(jnp.zeros(jnp.shape(x), wide) for x in own.leaves),
        of_constants=tuple(jnp.zeros(jnp.shape(x), wide) for x in own.constants),
        step=jnp.asarray(plan.n_blocks * per_block, jnp.int32),
    )
    back, _ = jax.lax.scan(block, back, (kept.places, asked), plan.n_blocks, reverse=True)
    lists = _first_lists(plan, inputs, kept)
    _, _, P, _, _, back = force_at(back, lists)
    back = pulled(back, lists)
    same = back.same & jnp.all(kept.start[0] == back.X) & jnp.all(kept.start[1] == P)
    found = _Inputs(
        back.of_position, back.of_momentum, back.of_mass, back.of_timestep, back.of_leaves, back.of_constants
    )
    return jax.tree.map(lambda x, like: (x * jnp.where(same, 1.0, jnp.nan)).astype(like.dtype), found, own)
