"""Radial functions that vanish smoothly at the cutoff."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Real

from moe_md.neighbors.components import RowComponents
from moe_md.neighbors.rows import Neighborhood


def polynomial_cutoff(x: Float[Array | np.ndarray | float, "*n"], p: float) -> Float[Array, "*n"]:
    """Envelope u(x): one at 0, zero with two derivatives at 1.

    u = 1 - (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) - p(p+1)/2 x^(p+2)

    Args:
        x: distance over cutoff.
        p: power, at least 2.

    Source:
        Gasteiger, Gross, Günnemann, arXiv:2003.03123, eq. 8.
    """
    p = int(p) if p == int(p) else p  # products are several times faster than a power
    u = 1.0 - (p + 1) * (p + 2) / 2 * x**p + p * (p + 2) * x ** (p + 1) - p * (p + 1) / 2 * x ** (p + 2)
    return jnp.where(x < 1.0, u, 0.0)


def bessel(x: Float[ArrayLike, "*n"], num_bessels: int) -> list[Float[Array, "*n"]]:
    """Bessel functions sin(n pi x) / (pi x), n = 1 .. num_bessels.

    Args:
        x: distance over cutoff, positive.
        num_bessels: number of functions.

    Source:
        arXiv:2003.03123, eq. 7, normalised as in the reference Allegro.
    """
    # sin(n y) by recursion from sin y and cos y: one sine and one cosine per edge.
    y = jnp.pi * x
    sine, twice_cosine, inverse = jnp.sin(y), 2.0 * jnp.cos(y), 1.0 / y
    waves = [jnp.zeros_like(sine), sine]
    for _ in range(num_bessels - 1):
        waves.append(twice_cosine * waves[-1] - waves[-2])
    return [wave * inverse for wave in waves[1:]]


def pair_cutoff(
    neighbors: Neighborhood | RowComponents, cutoff: float, pair_cutoffs: Sequence[Sequence[float]] | None
) -> float | Float[Array, "n K"]:
    """The cutoff of every slot, Å: one number unless pairs of species have different ones."""
    if pair_cutoffs is None:
        return cutoff
    displacement = neighbors.displacement
    dtype = displacement[0].dtype if isinstance(displacement, tuple) else displacement.dtype
    table = jnp.asarray(pair_cutoffs, dtype)
    return table[neighbors.center_species[:, None], neighbors.neighbor_species]


def radial_functions(
    distance: Float[Array | np.ndarray, "*n"],
    mask: Bool[Array | np.ndarray, "*n"],
    cutoff: Real[ArrayLike, "..."],
    num_bessels: int,
    p: float,
) -> list[Float[Array, "*n"]]:
    """Bessel functions times the envelope, zero on masked slots."""
    x = distance / cutoff
    envelope = jnp.where(mask, polynomial_cutoff(x, p), 0.0)
    return [function * envelope for function in bessel(x, num_bessels)]


def radial_basis(
    distance: Float[Array | np.ndarray, "*n"],
    mask: Bool[Array | np.ndarray, "*n"],
    cutoff: Real[ArrayLike, "..."],
    num_bessels: int,
    p: float,
    axis: int = -1,
) -> Float[Array, "..."]:
    """`radial_functions` along an axis of one array, `[..., num_bessels]`.

    With `axis` -2 neighbours stay along the last axis, which is faster on CPU.
    """
    return jnp.stack(radial_functions(distance, mask, cutoff, num_bessels, p), axis=axis)


def radial_polynomials(
    squared: Float[Array, "*n"], num_radial: int, cutoff_power: int
) -> list[Float[Array, "*n"]]:
    """g_q of squared distances over squared cutoffs, q < `num_radial`."""
    v = _at_most_one(squared)
    envelope, polynomials = (1.0 - v) ** cutoff_power, [jnp.ones_like(v), 1.0 - 2.0 * v]
    # T_a+b = 2 T_a T_b - T_b-a: few steps depend on one another, so that XLA fuses them into its loops.
    for q in range(2, num_radial):
        a, b = q // 2, (q + 1) // 2
        polynomials.append(2.0 * polynomials[a] * polynomials[b] - polynomials[b - a])
    return [envelope, *(polynomial * envelope for polynomial in polynomials[1:num_radial])]


@jax.custom_jvp
def _at_most_one(squared: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """min(u, 1).

    Its derivative is written as a division, since XLA for CPU stores the results of divisions. It would
    compute those of products again for each of x, y and z, with all that they are made of.
    """
    return jnp.minimum(squared, 1.0)


@_at_most_one.defjvp
def _(primals, tangents):
    (squared,), (tangent,) = primals, tangents
    one = jnp.ones_like(squared)
    return _at_most_one(squared), tangent / jnp.where(squared < 1.0, one, jnp.inf * one)
