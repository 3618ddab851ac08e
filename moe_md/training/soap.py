"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner.

Networks as small as these are limited by how well they are fitted, not by how
much they could hold, and there a full basis of curvature for each axis of each
parameter is cheap beside a step's partial forces.

Source: Vyas, Morwani, Zhao, Kwun, Shapira, Brandfonbrener, Janson, Kakade,
SOAP: improving and stabilizing Shampoo using Adam, arXiv:2409.11321.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

MAX_AXIS = 1024  # an axis longer than this is not rotated


class SoapState(NamedTuple):
    """What one update hands to the next; a tuple with one entry per leaf where no other is said."""

    count: Array  # int, updates so far
    mean: optax.Updates  # of gradients
    square: tuple[Array, ...]  # mean square of gradients, in the eigenbasis
    covariance: tuple[tuple[Array, ...], ...]  # per leaf and axis, `[d, d]`
    basis: tuple[tuple[Array, ...], ...]  # its eigenvectors, as columns


def scale_by_soap(
    b1: float = 0.95, b2: float = 0.99, *, refresh_every: int = 10, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Rescale gradients by SOAP; chain it where `optax.scale_by_adam` would stand.

    For a leaf G with axes a, C_a is the running mean of G G^T over all axes but
    a, and Q_a its eigenvectors. Adam's moments are of G rotated by every Q_a
    (the first is kept unrotated), and the update is rotated back. Q_a begins
    with the eigenvectors of the first gradient, and every `refresh_every`
    updates takes one step of orthogonal iteration, QR of C_a Q_a.

    Args:
        b1: decay of the mean gradient.
        b2: decay of its square, and of the covariances.
        refresh_every: updates between two refreshments of the bases.
        eps: added to the root of the mean square.

    Returns:
        An optax transformation. A leaf that gets no gradient is left alone.
    """

    def init(params) -> SoapState:
        leaves = jax.tree.leaves(params)
        return SoapState(
            jnp.zeros((), jnp.int32),
            jax.tree.map(jnp.zeros_like, params),
            tuple(jnp.zeros_like(p) for p in leaves),
            tuple(tuple(jnp.zeros((p.shape[a],) * 2, p.dtype) for a in _axes(p)) for p in leaves),
            tuple(tuple(jnp.eye(p.shape[a], dtype=p.dtype) for a in _axes(p)) for p in leaves),
        )

    def update(updates, state: Any, params=None):  # `SoapState`
        gradients, tree = jax.tree.flatten(updates)
        count = state.count + 1
        covariance = tuple(
            tuple(b2 * c + (1 - b2) * _outer(g, a) for c, a in zip(cs, _axes(g)))
            for cs, g in zip(state.covariance, gradients)
        )
        turn = jnp.where(count == 1, 0, jnp.where(count % refresh_every == 0, 1, 2))
        kept = state.basis, state.square
        basis, square = jax.lax.switch(
            turn, (_first, _refreshed, lambda _, basis, square: (basis, square)), covariance, *kept
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

    return optax.GradientTransformation(init, update)


def _unbiased(mean: Array, decay: float, count: Array) -> Array:
    """A running mean that began at zero, without that zero."""
    return mean / (1 - decay**count).astype(mean.dtype)


def _axes(leaf: Array) -> list[int]:
    """Axes that get a basis of their own."""
    return [a for a, d in enumerate(leaf.shape) if 1 < d <= MAX_AXIS]


def _outer(g: Array, axis: int) -> Array:
    flat = jnp.moveaxis(g, axis, 0).reshape(g.shape[axis], -1)
    return flat @ flat.T


def _rotated(x: Array, basis: tuple[Array, ...], back: bool = False) -> Array:
    for axis, q in zip(_axes(x), basis):
        x = jnp.moveaxis(jnp.tensordot(x, q.T if back else q, axes=(axis, 0)), -1, axis)
    return x


def _first(covariance, basis, square):
    return jax.tree.map(lambda c: jnp.linalg.eigh(c)[1], covariance), square


def _refreshed(covariance, basis, square):
    new = jax.tree.map(lambda c, q: jnp.linalg.qr(c @ q)[0], covariance, basis)
    # Components that did not correlate keep their mean squares: those of the
    # new directions are their means, by the squares of the turn.
    turn = jax.tree.map(lambda q, n: (q.T @ n) ** 2, basis, new)
    return new, tuple(_rotated(s, t) for s, t in zip(square, turn))
