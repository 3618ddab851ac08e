"""Trajectories that are differentiable from end to end.

`rollout` is one pure function of all that goes in: state, integrator (time
step, temperature, friction), parameters, region, box. Reverse mode for
gradients with respect to many numbers, forward mode for few, and
Hessian-vector products (forward over reverse) all work; so do `jit` and `vmap`.

Memory. Reverse mode keeps what every step computed. With `checkpoint` it keeps
states instead, at the start of segments, of segments of segments and so on, and
computes each step again when its turn comes: with L levels of n^(1/L) segments
L n^(1/L) states are kept, for up to L further forward passes
(Griewank, Walther, ACM TOMS 26, 19, 2000; here with equal segments).
`gradients.reversible_rollout` keeps none, at constant energy.

Lists. What depends on positions by steps (who is whose neighbour, which rows an
expert holds) has no derivative and needs none: an energy does not notice pairs
beyond its cutoffs. The gate's derivative is part of the energy's own. A list
that ran out of room, or was held while atoms left its skin, sets `overflow` and
turns all numbers of the result, and so their gradients, into NaN.

Long times. Gradients grow as nearby trajectories part, by exp(t / Lyapunov
time): then they are right, but of no use.
"""

from collections.abc import Callable
from dataclasses import is_dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from moe_md.checks import check_count
from moe_md.neighbors.neighbor_list import box_matrix
from moe_md.simulate.integrators import NVE, Evaluation, Integrator, Langevin, NoseHoover


class Snapshot(NamedTuple):
    """What `observe` is shown."""

    step: Array  # int, steps done
    position: Array  # [n_atoms, 3], in the coordinates of the energy
    momentum: Array  # [n_atoms, 3] amu Å / (Å sqrt(amu / eV))
    mass: Array  # [n_atoms, 1] amu
    force: Array  # [n_atoms, 3] eV/Å
    energy: Array  # eV, potential

    @property
    def velocity(self) -> Array:
        """`[n_atoms, 3]` Å / (Å sqrt(amu / eV))."""
        return self.momentum / self.mass


class Rollout(NamedTuple):
    """Where a differentiable trajectory led."""

    state: Any  # the integrator's state
    energy: Array  # eV, potential, of the last step
    observed: Any  # what `observe` returned, stacked or summed; None without one
    overflow: Array  # bool, a list was too small or held too long: all numbers are NaN


def rollout(
    energy_fn: Callable,
    integrator: NVE | Langevin | NoseHoover,
    state,
    neighbors,
    n_steps: int,
    *,
    params=None,
    region=None,
    box=None,
    update_every: int | None = 1,
    checkpoint: str | int | None = None,
    observe: Callable[[Snapshot], Any] | None = None,
    observe_every: int = 1,
    summed: bool = False,
) -> Rollout:
    """A trajectory as a pure function of everything that goes in.

    Differentiate with respect to `params`, `region` (radii, widths), `box`, the
    `integrator` (a pytree; within a traced function change it with
    `dataclasses.replace`, as `nve` and `langevin` check numbers) and the state
    (`integrator.start(position, momentum, masses, key, box)` makes one). Random
    numbers follow from the state's key, so that a thermostat's gradient is that
    of one realisation. A friction of zero has no derivative: NaN.

    Args:
        energy_fn: `energy_fn(R, neighbor=, params=, region=, box=)` in eV, from
            `mixture_neighbor_list`.
        integrator: from `nve`, `langevin` or `nose_hoover`.
        state: its state, or the `State` of an earlier `run`. Forces are
            computed anew.
        neighbors: a list with room enough, allocated with `region` and `box`.
        n_steps: steps to take.
        params, region: default the builder's.
        box: Å, where the energy takes one (fractional coordinates). Derivatives
            with respect to fractional positions are then per Å, as jax-md's
            forces are; what a loss makes of such positions must go through
            `displacement_fn` or `space.transform(box, R)`.
        update_every: 1: lists are looked at before each force, as in `run`. k:
            they are made anew at every k-th step and held in between. None:
            those given are held throughout.
        checkpoint: None keeps what each step computed; "sqrt" O(sqrt(n_steps))
            states; a number at most so many states.
        observe: of a `Snapshot`, any pytree of arrays, differentiable.
        observe_every: steps between observations; the first is after as many.
        summed: observations are added up, not stacked: memory for one.

    Returns:
        The last state, and what was observed, `[n_steps / observe_every, ...]`
        each. Where `overflow` is set all numbers are NaN; `check_rollout` raises.

    Raises:
        ValueError: an argument is out of range or does not fit; the integrator
            moves the box or takes multiple time steps; a gate of the region has
            jumps (`regions.reassigned`).
    """
    state, box = _unpacked(state, box)
    check_arguments(
        energy_fn, integrator, state, neighbors, region, n_steps, update_every, observe, observe_every, box
    )
    box = None if box is None else box_matrix(box)
    if box is not None:
        integrator = replace(integrator, shift_fn=partial(_shifted, integrator.shift_fn))
    given = {
        name: value
        for name, value in (("params", params), ("region", region), ("box", box))
        if value is not None
    }
    kept_lists = update_every != 1
    block = 1 if update_every in (1, None) else update_every
    unit = max(block, observe_every)
    levels = _levels(checkpoint, n_steps, unit)
    remat = partial(jax.checkpoint, prevent_cse=False) if levels else lambda f: f

    def lists_at(position, held, renew: bool):
        """The lists for a position, and whether they will do."""
        seen = jax.lax.stop_gradient({name: given[name] for name in given if name != "params"})
        position = jax.lax.stop_gradient(position)
        if update_every is None or (kept_lists and not renew):
            return held, jnp.asarray(held.did_buffer_overflow, bool) | held.stale(position, **seen)
        held = held.update(position, **seen, **({"renew": True} if renew and kept_lists else {}))
        return held, jnp.asarray(held.did_buffer_overflow, bool)

    def evaluate(position, held) -> tuple[Array, Array]:
        energy, gradient = jax.value_and_grad(lambda R: energy_fn(R, neighbor=held, **given))(position)
        return energy.astype(position.dtype), -gradient.astype(position.dtype)

    def step(carry: _Carry, held=None) -> tuple["_Carry", None]:
        """One step, with lists held from outside or in the carry."""

        def force_at(position):
            found, wrong = lists_at(position, carry.lists if held is None else held, False)
            energy, force = evaluate(position, found)
            return force, (found, wrong, energy)

        new, (found, wrong, energy) = step_once(integrator, carry.state, force_at, box)
        lists = found if held is None else None
        return _Carry(new, lists, energy, carry.overflow | wrong, carry.step + 1, carry.total), None

    def look(carry: _Carry) -> tuple["_Carry", Any]:
        if observe is None:
            return carry, None
        seen = observe(_snapshot(carry))
        if not summed:
            return carry, seen
        return carry._replace(total=jax.tree.map(jnp.add, carry.total, seen)), None

    def steps(carry: _Carry, n: int, held) -> "_Carry":
        body = remat(partial(step, held=held))
        return body(carry)[0] if n == 1 else jax.lax.scan(lambda c, _: body(c), carry, None, n)[0]

    def watched(carry: _Carry, held) -> tuple["_Carry", Any]:
        return look(steps(carry, observe_every, held))

    def renewed(carry: _Carry):
        held, wrong = lists_at(carry.state.position, neighbors, True)
        return held, carry._replace(overflow=carry.overflow | wrong)

    def one_unit(carry: _Carry) -> tuple["_Carry", Any]:
        """As many steps as it takes for lists and observations to come round."""
        if block == 1:
            return watched(carry, neighbors if update_every is None else None)
        if block >= observe_every:
            held, carry = renewed(carry)
            return _scan(partial(watched, held=held), carry, block // observe_every)

        def one_block(carry: _Carry):
            held, carry = renewed(carry)
            return steps(carry, block, held), None

        return look(_scan(one_block, carry, observe_every // block)[0])

    first, wrong = lists_at(state.position, neighbors, True)
    energy, force = evaluate(state.position, first)
    state = _as_dtypes(state, integrator.receive(state, Evaluation(force, None)))
    carry = _Carry(state, first if update_every == 1 else None, energy, wrong, jnp.zeros((), jnp.int32), None)
    if observe is not None and summed:
        carry = carry._replace(
            total=jax.tree.map(
                lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(observe, _snapshot(carry))
            )
        )
    carry, seen = _nested(one_unit, carry, n_steps // unit, levels)
    if unit > observe_every:
        seen = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), seen)
    seen = None if observe is None else carry.total if summed else seen
    return Rollout(*nan_if((carry.state, carry.energy, seen), carry.overflow), carry.overflow)


def check_rollout(result: Rollout) -> Rollout:
    """The result, on the host; raises where its numbers are NaN because a list did not hold.

    Raises:
        RuntimeError: a list overflowed.
        FloatingPointError: energies or positions are not finite for another reason.
    """
    if bool(np.any(np.asarray(result.overflow))):
        raise RuntimeError(
            "neighbour lists must hold all along a rollout, "
            "but they overflowed or were held while atoms left their skin: "
            "hand it the neighbors that simulate.run returns for the same steps, "
            "or neighbor_fn.allocate(position, extra_capacity=...), "
            "or make update_every smaller or dr_threshold larger."
        )
    numbers = (result.energy, result.state.position, result.state.momentum)
    if not all(np.isfinite(np.asarray(x)).all() for x in numbers):
        raise FloatingPointError(
            "energy, positions and momenta of a rollout must stay finite, "
            "got NaN or infinity: try a shorter timestep_fs."
        )
    return result


def check_arguments(
    energy_fn, integrator, state, neighbors, region, n_steps, update_every, observe, observe_every, box=None
) -> None:
    """Raise `ValueError` where something does not fit; shared by all differentiable trajectories."""
    if not callable(energy_fn):
        raise ValueError(f"energy_fn must be a function, got {energy_fn!r:.80}.")
    if not is_dataclass(integrator) or not all(
        hasattr(integrator, name) for name in ("place", "receive", "step", "outer_every")
    ):
        raise ValueError(f"integrator must be from nve, langevin or nose_hoover, got {integrator!r:.80}.")
    if integrator.outer_every != 1:
        raise ValueError(
            "integrator must have outer_every = 1 to be differentiated through, "
            f"got {integrator.outer_every}."
        )
    if integrator.changes_box:
        raise ValueError(
            "integrator must hold the box to be differentiated through: nve, langevin or nose_hoover, "
            f"got {type(integrator).__name__}."
        )
    if getattr(integrator, "expert_friction", None) is not None and jnp.ndim(integrator.friction_per_fs) == 0:
        raise ValueError(
            "integrator must have a friction for each atom where it has rates of experts: "
            "hand over integrator.follow(neighbor_fn.gate(position, neighbors))."
        )
    if not all(hasattr(state, name) for name in ("position", "momentum", "mass")):
        raise ValueError(f"state must be the integrator's, as integrator.start makes one, got {state!r:.80}.")
    key = getattr(state, "rng", None)
    wanted = jax.eval_shape(
        lambda s, k: integrator.start(s.position, s.momentum, s.mass[:, 0], k, box), state, key
    )
    if type(wanted) is not type(state) or (integrator.needs_key and key is None):
        raise ValueError(
            f"state must be a {type(wanted).__name__}, as this integrator.start makes it, "
            f"with a key where it needs one, got {type(state).__name__}."
        )
    check_count("n_steps", n_steps, 0)
    check_count("observe_every", observe_every, 1)
    if observe is not None and not callable(observe):
        raise ValueError(f"observe must be a function of a Snapshot, got {observe!r:.80}.")
    block = 1 if update_every is None else check_count("update_every", update_every, 1)
    wanted = ["update", "did_buffer_overflow"] + ["stale"] * (update_every != 1)
    if not all(hasattr(neighbors, name) for name in wanted):
        raise ValueError(f"neighbors must be of mixture_neighbor_list, got {neighbors!r:.80}.")
    longer, shorter = max(block, observe_every), min(block, observe_every)
    if longer % shorter:
        raise ValueError(
            "observe_every and update_every must be multiples one of the other, "
            f"got {observe_every} and {update_every}."
        )
    for name, every in (("observe_every", observe_every), ("update_every", block)):
        if n_steps % every:
            raise ValueError(f"n_steps must be a multiple of {name} = {every}, got {n_steps}.")
    for part in jax.tree.leaves(region, is_leaf=_jumps):
        if _jumps(part):
            raise ValueError(
                f"region must have smooth gates to be differentiated through, got {type(part).__name__}, "
                "whose atoms change hands at once: use the region that it is made of."
            )


def step_once(integrator: Integrator, state, force_at: Callable, box=None) -> tuple[Any, Any]:
    """One step of an integrator that asks for one force.

    Args:
        integrator: from `nve`, `langevin` or `nose_hoover`.
        state: its state, forces known.
        force_at: of the new positions, `(force, anything)`.
        box: where the integrator's `shift_fn` takes one.

    Returns:
        The new state, in the dtypes of the old, and that anything.
    """
    nothing = Evaluation(jnp.zeros_like(state.position), None)
    position, _ = integrator.place(integrator.step(state, nothing, box), box)
    force, more = force_at(position.astype(state.position.dtype))
    return _as_dtypes(state, integrator.step(state, Evaluation(force, None), box)), more


def nan_if(tree, wrong: Array):
    """NaN in the place of every real number, and of every gradient, where something is wrong."""
    factor = jnp.where(wrong, jnp.nan, 1.0)

    def one(x):
        x = jnp.asarray(x)
        return x * factor.astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(one, tree)


class _Carry(NamedTuple):
    """What steps hand on."""

    state: Any
    lists: Any  # where they are looked at before each force, else None
    energy: Array  # eV
    overflow: Array  # bool
    step: Array  # int
    total: Any  # of observations, where they are added up


def _snapshot(carry: _Carry) -> Snapshot:
    s = carry.state
    return Snapshot(carry.step, s.position, s.momentum, s.mass, s.force, carry.energy)


def _unpacked(state, box):
    """The integrator's state and the box, also of the `State` of a run."""
    if hasattr(state, "dynamics"):
        return state.dynamics, state.box if box is None else box
    return state, box


def _jumps(region) -> bool:
    return getattr(region, "smooth", True) is False


def _as_dtypes(old, new):
    """A time step or box of another dtype must not change the state's."""
    return jax.tree.map(
        lambda a, b: b if b.dtype == a.dtype else b.astype(a.dtype), jax.tree.map(jnp.asarray, old), new
    )


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def moved_fractions(shift_fn: Callable, R: Array, dR: Array, box: Array) -> Array:
    """Fractions of the box after a move in Å."""
    return shift_fn(R, dR, box=box)


@moved_fractions.defjvp
def _moved_jvp(shift_fn, primals, tangents):
    """Tangents of fractions are Å, as jax-md's are.

    Those of a move are what it is in Å, less what the box gains (jax-md adds fractions to Å here).
    """
    (R, dR, box), (R_dot, dR_dot, box_dot) = primals, tangents
    return moved_fractions(shift_fn, R, dR, box), R_dot + dR_dot - jnp.linalg.solve(box, dR.T).T @ box_dot.T


def _shifted(shift_fn: Callable, R: Array, dR: Array, *, box) -> Array:
    return moved_fractions(shift_fn, R, dR, box)


def _levels(checkpoint, n_steps: int, unit: int) -> int:
    """Levels of nested segments; none where everything is kept."""
    if checkpoint is None:
        return 0
    own, n_units = unit if unit > 1 else 0, n_steps // unit
    if checkpoint == "sqrt":
        budget = 2 * int(np.ceil(np.sqrt(n_steps))) + own
    elif isinstance(checkpoint, str):
        raise ValueError(f'checkpoint must be None, "sqrt" or a number of states, got {checkpoint!r}.')
    else:
        budget = check_count("checkpoint", checkpoint, 1)
    most = max(1, int(np.ceil(np.log2(max(n_units, 1)))))
    kept = [level * _root(n_units, level) + own for level in range(1, most + 1)]
    for level, count in enumerate(kept, 1):
        if count <= budget:
            return level
    raise ValueError(
        f"checkpoint must be at least {min(kept)} states for {n_steps} steps in groups of {unit}, "
        f"got {checkpoint}."
    )


def _root(n: int, level: int) -> int:
    """The least whole number whose power is at least n."""
    root = round(n ** (1.0 / level))
    return next(r for r in range(max(root - 1, 0), root + 2) if r**level >= n)


def _scan(body: Callable, carry, n: int):
    return jax.lax.scan(lambda c, _: body(c), carry, None, n)


def _nested(body: Callable, carry, n: int, levels: int):
    """`body` n times; with two or more levels in segments of which only the start is kept."""
    if levels < 2 or n < 4:
        return _scan(body, carry, n)
    length = -(-n // _root(n, levels))
    full, rest = divmod(n, length)
    segment = jax.checkpoint(lambda c: _nested(body, c, length, levels - 1), prevent_cse=False)
    carry, seen = _scan(segment, carry, full)
    seen = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), seen)
    if rest:
        carry, more = jax.checkpoint(lambda c: _nested(body, c, rest, levels - 1))(carry)
        seen = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), seen, more)
    return carry, seen
