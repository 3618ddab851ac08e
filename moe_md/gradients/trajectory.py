"""What all differentiable trajectories share: results, checks of arguments, positions in fractions."""

from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Real

from moe_md.checks import check_count

Tree = TypeVar("Tree")  # a pytree of arrays


class Snapshot(NamedTuple):
    """The argument of `observe`."""

    step: Int[Array, ""]  # steps done
    position: Float[Array, "atoms 3"]  # in the coordinates of the energy
    momentum: Float[Array, "atoms 3"]  # amu Å / (Å sqrt(amu / eV))
    mass: Float[Array, "atoms 1"]  # amu
    force: Float[Array, "atoms 3"]  # eV/Å
    energy: Float[Array, ""]  # eV, potential

    @property
    def velocity(self) -> Float[Array, "... atoms 3"]:
        """Å / (Å sqrt(amu / eV))."""
        return self.momentum / self.mass


class Rollout(NamedTuple):
    """The end of a differentiable trajectory."""

    state: Any  # the integrator's state
    energy: Float[Array, ""]  # eV, potential, of the last step
    observed: Any  # what `observe` returned, stacked or summed; None without one
    overflow: Bool[Array, ""]  # a list was too small, or not rebuilt in time: all values are NaN


def check_rollout(result: Rollout) -> Rollout:
    """The result, on the host; raises where its values are not finite.

    Raises:
        RuntimeError: a list overflowed, or was not rebuilt in time.
        FloatingPointError: energies or positions are not finite for another reason.
    """
    if bool(np.any(np.asarray(result.overflow))):
        raise RuntimeError(
            "neighbour lists must hold all along a rollout, "
            "but they overflowed, or atoms moved by more than the skin between two updates: "
            "pass the neighbors that simulate.run returns for the same steps, "
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
        hasattr(integrator, name) for name in ("before_force", "after_force", "outer_every")
    ):
        raise ValueError(f"integrator must be from nve, langevin or nose_hoover, got {integrator!r:.80}.")
    if integrator.outer_every != 1:
        raise ValueError(
            "integrator must have outer_every = 1 to be differentiated through, "
            f"got {integrator.outer_every}."
        )
    if integrator.changes_box:
        raise ValueError(
            "integrator must keep the box fixed to be differentiated through: nve, langevin or nose_hoover, "
            f"got {type(integrator).__name__}."
        )
    if getattr(integrator, "friction_fn", None) is not None and integrator.friction_per_fs is None:
        raise ValueError(
            "integrator must have a friction for each atom to be differentiated through: "
            "pass integrator.at_chunk_start(position, neighbors)."
        )
    if not all(hasattr(state, name) for name in ("position", "momentum", "mass")):
        raise ValueError(f"state must be the integrator's, as integrator.init makes one, got {state!r:.80}.")
    key = getattr(state, "rng", None)
    wanted = jax.eval_shape(
        lambda s, k: integrator.init(s.position, s.momentum, s.mass[:, 0], k, box), state, key
    )
    if type(wanted) is not type(state) or (integrator.needs_key and key is None):
        raise ValueError(
            f"state must be a {type(wanted).__name__}, as this integrator.init makes it, "
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
                "whose atoms switch expert at once: use the region inside it."
            )


def nan_if(tree: Tree, wrong: Bool[Array, ""]) -> Tree:
    """The pytree, with NaN for every real number and its gradients where `wrong` is True."""
    factor = jnp.where(wrong, jnp.nan, 1.0)

    def one(x):
        x = jnp.asarray(x)
        return x * factor.astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(one, tree)


def _jumps(region) -> bool:
    return getattr(region, "smooth", True) is False


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def moved_fractions(
    shift_fn: Callable,
    R: Float[Array | np.ndarray, "atoms 3"],
    dR: Float[Array, "atoms 3"],
    box: Real[Array | np.ndarray, "3 3"],
) -> Float[Array, "atoms 3"]:
    """Fractions of the box after a move in Å; tangents of fractions are Å."""
    return shift_fn(R, dR, box=box)


@moved_fractions.defjvp
def _moved_jvp(shift_fn, primals, tangents):
    """Tangents of fractions are Å, as jax-md's are.

    Those of a move are what it is in Å, less what the box gains (jax-md adds fractions to Å here).
    """
    (R, dR, box), (R_dot, dR_dot, box_dot) = primals, tangents
    return moved_fractions(shift_fn, R, dR, box), R_dot + dR_dot - jnp.linalg.solve(box, dR.T).T @ box_dot.T


def shifted_fractions(
    shift_fn: Callable,
    R: Float[Array | np.ndarray, "atoms 3"],
    dR: Float[Array, "atoms 3"],
    *,
    box: Real[Array | np.ndarray, "3 3"],
) -> Float[Array, "atoms 3"]:
    """`moved_fractions` as a shift function."""
    return moved_fractions(shift_fn, R, dR, box)


def unpacked(
    state, box: Real[ArrayLike, "..."] | Sequence | None
) -> tuple[Any, Real[ArrayLike, "..."] | Sequence | None]:
    """The integrator's state and the box, also of the `State` of a run."""
    if hasattr(state, "dynamics"):
        return state.dynamics, state.box if box is None else box
    return state, box
