"""The largest Lyapunov exponent, by tangent dynamics.

A tangent vector follows the state, dx' = (d step / dx) dx, exactly (forward-mode
differentiation). It is renormalised every few steps, and its growth is accumulated:

    lambda = lim 1/t ln |dx(t)| / |dx(0)|.

The same growth is that of a gradient through the trajectory: beyond a few
Lyapunov times 1/lambda it says nothing of an average, however exactly it is computed.

Source: Benettin, Galgani, Giorgilli, Strelcyn, Meccanica 15, 9 (1980).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int, Real

from moe_md.checks import check_count
from moe_md.simulate.integrators.base import DynamicsState
from moe_md.simulate.integrators.nve import NVE
from moe_md.simulate.step import md_step


class TangentGrowth(NamedTuple):
    """Growth of a tangent vector, per step."""

    steps: Int[np.ndarray, " n"]  # from 1
    log_growth: Float[np.ndarray, " n"]  # ln |dx| over |dx| at the start
    exponent: float  # growth per step, from the later part
    error: float  # standard error of the exponent from blocks; NaN where there are too few
    state: Any  # last state of the trajectory
    carry: Any


def lyapunov_exponent(
    step_fn: Callable,
    state,
    tangent,
    *,
    n_steps: int,
    every: int = 10,
    carry=None,
    size_fn: Callable | None = None,
    skip: float = 0.25,
) -> TangentGrowth:
    """Growth of a tangent vector along a trajectory.

    Args:
        step_fn: `(state, carry) -> (state, carry)`, one step; only the state is
            differentiated.
        state: a pytree of floating point arrays.
        tangent: of the same structure, the first vector. Almost any turns towards the fastest
            growth.
        n_steps: a multiple of `every`.
        every: steps between two renormalisations.
        carry: what goes along, as neighbour lists.
        size_fn: of a tangent, a norm of it or of a part of it; default the Euclidean.
        skip: share of the trajectory left out of the exponent, in [0, 1): there the vector turns.

    Returns:
        The growth; over the time of a step the exponent is lambda.

    Raises:
        ValueError: a number is out of range, the tangent has no size, or growth is not finite.

    Arnold's map stretches by (3 + sqrt 5) / 2:

    >>> def step_fn(x, constants):
    ...     return jnp.array([[2.0, 1.0], [1.0, 1.0]]) @ x % 1.0, constants
    >>> found = lyapunov_exponent(step_fn, jnp.array([0.3, 0.1]), jnp.array([1.0, 0.0]), n_steps=200)
    >>> round(found.exponent, 4), round(float(np.log((3 + 5**0.5) / 2)), 4)
    (0.9624, 0.9624)
    """
    check_count("every", every, 1)
    check_count("n_steps", n_steps, every)
    if n_steps % every or not 0 <= skip < 1:
        raise ValueError(
            f"n_steps must be a multiple of every, and skip in [0, 1), got {n_steps}, {every} and {skip}."
        )
    size_fn = _euclidean if size_fn is None else size_fn
    size = float(size_fn(tangent))
    if not (np.isfinite(size) and size > 0):
        raise ValueError(f"tangent must have a positive, finite size, got {size}.")
    tangent = jax.tree.map(lambda x: x / size, tangent)
    state, carry, log_growth = _follow(step_fn, size_fn, n_steps // every, every, state, tangent, carry)
    log_growth = np.asarray(log_growth, float)  # [n_steps / every]
    if not np.isfinite(log_growth).all():
        first = every * int(np.argmin(np.isfinite(log_growth)))
        raise ValueError(
            "step_fn must keep state and tangent finite, "
            f"got NaN or infinity within {every} steps of step {first}."
        )
    later = log_growth[int(skip * len(log_growth)) :]
    n_blocks = 5
    blocks = (
        later[: len(later) // n_blocks * n_blocks].reshape(n_blocks, -1).mean(axis=1)
        if len(later) >= n_blocks
        else None
    )
    error = np.nan if blocks is None else blocks.std(ddof=1) / np.sqrt(n_blocks) / every
    return TangentGrowth(
        every * np.arange(1, len(log_growth) + 1),
        np.cumsum(log_growth),
        float(later.mean()) / every,
        float(error),
        state,
        carry,
    )


def flow(energy_fn: Callable, integrator: NVE) -> tuple[Callable, Callable]:
    """Functions of a constant-energy trajectory for `lyapunov_exponent`; the carry are neighbours.

    Args:
        energy_fn: `energy_fn(R, neighbor=...)` in eV.
        integrator: from `nve`.

    Returns:
        init: `(position, momentum, masses, neighbors) -> state`, jax-md's.
        step: `(state, neighbors) -> (state, neighbors)`, which updates the neighbours. Look at
        their `did_buffer_overflow` in the end.

    Raises:
        ValueError: the integrator is another one.
    """
    if type(integrator) is not NVE:
        raise ValueError(f"integrator must be from nve, got {type(integrator).__name__}.")

    def evaluate(position, neighbors):
        return integrator.evaluate(energy_fn, jnp.zeros((), int), position, neighbor=neighbors)

    def init(
        position: Float[Array | np.ndarray, "atoms 3"],
        momentum: Float[Array | np.ndarray, "atoms 3"],
        masses: Real[ArrayLike, " atoms"] | Sequence,
        neighbors,
    ) -> DynamicsState:
        state = integrator.init(position, momentum, jnp.asarray(masses, position.dtype), None, None)
        return integrator.set_forces(state, jax.jit(evaluate)(position, neighbors))

    def step(state, neighbors) -> tuple[Any, Any]:
        def update_and_evaluate(position, box):
            del box
            updated = neighbors.update(jax.lax.stop_gradient(position))
            return evaluate(position, updated), updated

        state, _, _, updated = md_step(integrator, state, None, update_and_evaluate)
        return state, updated

    return init, step


def of_positions(tangent) -> Float[Array, ""]:
    """Norm of the positions' part of a tangent: that of d position(t) / d position(0)."""
    return jnp.sqrt(jnp.sum(tangent.position**2))


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _follow(step_fn, size_fn, n_chunks, every, state, tangent, carry):
    def step(moving, _):
        state, tangent, carry = moving
        state, tangent, carry = jax.jvp(lambda s: step_fn(s, carry), (state,), (tangent,), has_aux=True)
        return (state, tangent, carry), None

    def chunk(moving, _):
        state, tangent, carry = jax.lax.scan(step, moving, None, length=every)[0]
        size = size_fn(tangent)
        return (state, jax.tree.map(lambda x: x / size, tangent), carry), jnp.log(size)

    (state, _, carry), log_growth = jax.lax.scan(chunk, (state, tangent, carry), None, length=n_chunks)
    return state, carry, log_growth


def _euclidean(tangent) -> Array:
    return jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(tangent)))
