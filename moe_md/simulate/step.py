"""One step of molecular dynamics: the same for runs, rollouts, several devices and timings."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Real

from moe_md.simulate.integrators.base import Evaluation, Integrator

Tree = TypeVar("Tree")  # a pytree of arrays


def md_step(
    integrator: Integrator,
    state,
    box: Real[Array | np.ndarray, "3 3"] | None,
    evaluate: Callable,
    *,
    only_evaluate: Bool[ArrayLike, ""] = False,
) -> tuple[Any, Real[Array | np.ndarray, "3 3"] | None, Evaluation, Any]:
    """One step, with one evaluation of the forces at the new positions.

    Args:
        integrator: from `simulate.nve` or another of its builders.
        state: the integrator's state, forces known.
        box: Å, columns, or None.
        evaluate: `(position, box) -> (Evaluation, anything)`; updates neighbour
            lists at these positions first.
        only_evaluate: may be traced: where True, positions and momenta
            stay and only the forces are set.

    Returns:
        The new state in the dtypes of the old one, the new box, the evaluation,
        and what else `evaluate` returned.
    """
    moved = like(state, integrator.before_force(state, box))
    if only_evaluate is not False:
        moved = _select(only_evaluate, state, moved)
    position, box = integrator.positions_and_box(moved, box)
    evaluation, more = evaluate(position, box)
    new = like(state, integrator.after_force(moved, evaluation))
    if only_evaluate is not False:
        new = _select(only_evaluate, like(state, integrator.set_forces(moved, evaluation)), new)
    return new, box, evaluation, more


def like(old: Tree, new: Tree) -> Tree:
    """The new pytree in the dtypes of the old one; a float64 box must not change a float32 state."""
    return jax.tree.map(
        lambda a, b: b if b.dtype == a.dtype else b.astype(a.dtype),
        jax.tree.map(jnp.asarray, old),
        jax.tree.map(jnp.asarray, new),
    )


def _select(condition, first, second):
    """`where` for pytrees; random keys too."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), first, second)
