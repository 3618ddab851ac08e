"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner.

The error of small networks is limited by optimisation, not by capacity. For
them a full eigenbasis for each axis of each parameter costs little beside the
partial forces of a step.

Source: Vyas, Morwani, Zhao, Kwun, Shapira, Brandfonbrener, Janson, Kakade,
SOAP: improving and stabilizing Shampoo using Adam, arXiv:2409.11321.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Float, Int

MAX_AXIS = 1024  # longer axes are not rotated


class SoapState(NamedTuple):
    """State of the optimiser; tuples have one entry per leaf of the parameters."""

    count: Int[Array, ""]  # number of updates
    mean: optax.Updates  # running mean of the gradients, a tree as the parameters
    square: tuple[Float[Array, "..."], ...]  # running mean of the squared gradients, in the eigenbasis
    covariance: tuple[tuple[Float[Array, "d d"], ...], ...]  # per leaf and rotated axis
    basis: tuple[tuple[Float[Array, "d d"], ...], ...]  # eigenvectors of `covariance`, as columns


def scale_by_soap(
    b1: float = 0.95, b2: float = 0.99, *, refresh_every: int = 10, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Rescale gradients by SOAP; used in an optax chain in place of `optax.scale_by_adam`.

    For a leaf G with axes a, C_a is the running mean of G G^T over all axes but
    a, and Q_a its eigenvectors. Adam's moments are those of G rotated by every Q_a
    (the first is stored unrotated), and the update is rotated back. Q_a starts
    as the eigenvectors of the first gradient's C_a. Every `refresh_every`
    updates it takes one step of orthogonal iteration, QR of C_a Q_a.

    Args:
        b1: decay of the mean gradient.
        b2: decay of the mean square and of the covariances.
        refresh_every: updates between two steps of orthogonal iteration.
        eps: added to the root of the mean square.

    Returns:
        An optax transformation. A leaf whose gradients are zero is not changed.
    """
    return optax.GradientTransformation(_init, partial(_update, b1, b2, refresh_every, eps))


def _init(params) -> SoapState:
    """Zero moments and covariances, identity bases."""
    leaves = jax.tree.leaves(params)
    return SoapState(
        jnp.zeros((), jnp.int32),
        jax.tree.map(jnp.zeros_like, params),
        tuple(jnp.zeros_like(p) for p in leaves),
        tuple(tuple(jnp.zeros((p.shape[a],) * 2, p.dtype) for a in _axes(p)) for p in leaves),
        tuple(tuple(jnp.eye(p.shape[a], dtype=p.dtype) for a in _axes(p)) for p in leaves),
    )


def _update(b1: float, b2: float, refresh_every: int, eps: float, updates, state: Any, params=None):
    """Rescaled gradients and the next `SoapState`."""
    gradients, tree = jax.tree.flatten(updates)
    count = state.count + 1
    covariance = tuple(
        tuple(b2 * c + (1 - b2) * _outer(g, a) for c, a in zip(cs, _axes(g)))
        for cs, g in zip(state.covariance, gradients)
    )
    branch = jnp.where(count == 1, 0, jnp.where(count % refresh_every == 0, 1, 2))
    basis, square = jax.lax.switch(
        branch, (_initial_basis, _refreshed_basis, _same_basis), covariance, state.basis, state.square
    )
    mean = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mean, updates)
    square = tuple(b2 * s + (1 - b2) * _rotated(g, q) ** 2 for s, g, q in zip(square, gradients, basis))
    steps = [
        _rotated(
            _unbiased(_rotated(m, q), b1, count) / (jnp.sqrt(_unbiased(s, b2, count)) + eps), q, back=True
        )
        for m, s, q in zip(jax.tree.leaves(mean), square, basis)
    ]
    return tree.unflatten(steps), SoapState(count, mean, square, covariance, basis)


def _unbiased(mean: Array, decay: float, count: Array) -> Array:
    """A running mean that started at zero, with that bias removed as in Adam."""
    return mean / (1 - decay**count).astype(mean.dtype)


def _axes(leaf: Array) -> list[int]:
    """Axes of a leaf that are rotated."""
    return [a for a, d in enumerate(leaf.shape) if 1 < d <= MAX_AXIS]


def _outer(g: Array, axis: int) -> Array:
    """G G^T over all axes but one, `[d, d]`."""
    flat = jnp.moveaxis(g, axis, 0).reshape(g.shape[axis], -1)
    return flat @ flat.T


def _rotated(x: Array, basis: tuple[Array, ...], back: bool = False) -> Array:
    """An array in the eigenbasis of every rotated axis, or from there back to its own."""
    for axis, q in zip(_axes(x), basis):
        x = jnp.moveaxis(jnp.tensordot(x, q.T if back else q, axes=(axis, 0)), -1, axis)
    return x


def _initial_basis(covariance, basis, square):
    """Eigenvectors of the covariances; mean squares as before."""
    return jax.tree.map(lambda c: jnp.linalg.eigh(c)[1], covariance), square


def _refreshed_basis(covariance, basis, square):
    """Bases after one step of orthogonal iteration, and the mean squares in them."""
    new = jax.tree.map(lambda c, q: jnp.linalg.qr(c @ q)[0], covariance, basis)
    # Mean squares of uncorrelated components transform with the squared rotation matrix.
    rotation = jax.tree.map(lambda q, n: (q.T @ n) ** 2, basis, new)
    return new, tuple(_rotated(s, r) for s, r in zip(square, rotation))


def _same_basis(covariance, basis, square):
    """Bases and mean squares as before."""
    return basis, square
