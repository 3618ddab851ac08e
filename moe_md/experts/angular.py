"""Spherical harmonics and Clebsch-Gordan paths, in the conventions of e3nn."""

from functools import lru_cache
from math import factorial, prod, sqrt

import e3nn_jax as e3nn
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

Irrep = tuple[int, int]  # (l, parity)


def spherical_harmonics(
    l_max: int, displacement: Float[Array | np.ndarray, "*n 3"], axis: int = -1
) -> Float[Array, "..."]:
    """Real spherical harmonics of the directions, "component" normalisation.

    The sum of squares over m is 2l + 1. Components, signs and axes are those of
    e3nn (polar axis y), so that its Clebsch-Gordan coefficients can be used.

    Args:
        l_max: highest order.
        displacement: zero vectors are not allowed: mask first.
        axis: of the result, for the components; -2 keeps neighbours along the last
            axis, which is faster on CPU.

    Returns:
        `[..., (l_max + 1)^2]`, l blocks in ascending order.
    """
    inverse = 1.0 / jnp.sqrt(jnp.sum(displacement**2, axis=-1))
    x, y, z = (displacement[..., i] * inverse for i in range(3))
    orders = solid_harmonics(l_max, x, y, z, 1.0)
    components = [sqrt(2 * l + 1) * c for l, order in enumerate(orders) for c in order]
    return jnp.stack(components, axis=axis)


def solid_harmonics(
    l_max: int,
    x: Float[Array | np.ndarray, "*n"],
    y: Float[Array | np.ndarray, "*n"],
    z: Float[Array | np.ndarray, "*n"],
    squared: Float[Array | np.ndarray, "*n"] | float,
) -> list[list[Array]]:
    """Real solid harmonics, polynomials of the coordinates: for each l the 2l + 1 components.

    The sum of their squares over m is (x^2 + y^2 + z^2)^l. Order and axes as in
    `spherical_harmonics`.

    Args:
        l_max: highest order.
        x, y, z: coordinates, zero allowed.
        squared: x^2 + y^2 + z^2.

    Source:
        Associated Legendre functions without the phase (-1)^m, by recursion
        in l (DLMF 14.10.3), times the real and imaginary part of (z + i x)^m.

    >>> one, four = jnp.ones(()), jnp.asarray(4.0)
    >>> [c.item() for c in solid_harmonics(1, one * 0, 2 * one, one * 0, four)[1]]
    [0.0, 2.0, 0.0]
    """
    one = jnp.ones_like(y)
    cosine: list[Array | np.ndarray] = [one]
    sine: list[Array | np.ndarray] = [jnp.zeros_like(y)]
    for m in range(l_max):
        cosine.append(z * cosine[m] - x * sine[m])
        sine.append(z * sine[m] + x * cosine[m])
    legendre = {}
    for m in range(l_max + 1):
        legendre[m, m] = float(prod(range(1, 2 * m, 2))) * one
        if m < l_max:
            legendre[m + 1, m] = (2 * m + 1) * y * legendre[m, m]
        for l in range(m + 2, l_max + 1):
            before = (l + m - 1) * squared * legendre[l - 2, m]
            legendre[l, m] = ((2 * l - 1) * y * legendre[l - 1, m] - before) / (l - m)
    orders = []
    for l in range(l_max + 1):
        sizes = [
            sqrt(factorial(l - abs(m)) / factorial(l + abs(m)) * (1 if m == 0 else 2))
            for m in range(-l, l + 1)
        ]
        waves = [sine[-m] if m < 0 else cosine[m] for m in range(-l, l + 1)]
        orders.append(
            [size * legendre[l, abs(m)] * wave for m, size, wave in zip(range(-l, l + 1), sizes, waves)]
        )
    return orders


def harmonic_irreps(l_max: int) -> tuple[Irrep, ...]:
    """Irreps of the spherical harmonics: parity (-1)^l."""
    return tuple((l, (-1) ** l) for l in range(l_max + 1))


def dim(irreps: tuple[Irrep, ...]) -> int:
    """Number of components."""
    return sum(2 * l + 1 for l, _ in irreps)


def slices(irreps: tuple[Irrep, ...]) -> list[slice]:
    """The slice of each irrep's components."""
    ends = np.cumsum([2 * l + 1 for l, _ in irreps])
    return [slice(int(end) - 2 * l - 1, int(end)) for end, (l, _) in zip(ends, irreps)]


def couples(a: Irrep, b: Irrep, out: Irrep) -> bool:
    """Whether `out` occurs in the product of `a` and `b`."""
    return a[1] * b[1] == out[1] and abs(a[0] - b[0]) <= out[0] <= a[0] + b[0]


@lru_cache
def coupling_tensor(
    left: tuple[Irrep, ...], right: tuple[Irrep, ...], out: tuple[Irrep, ...]
) -> Float[np.ndarray, "paths left right out"]:
    """Coefficients of all paths left x right -> out.

    Paths are ordered by output, then left, then right irrep. Each carries the
    Wigner 3j symbols of unit norm times sqrt(2 l_out + 1).

    Returns:
        A matrix `[dim(left), dim(right), dim(out)]` for each path, float64.
    """
    paths = []
    for o, slice_o in zip(out, slices(out)):
        for a, slice_a in zip(left, slices(left)):
            for b, slice_b in zip(right, slices(right)):
                if couples(a, b, o):
                    w = np.asarray(e3nn.clebsch_gordan(a[0], b[0], o[0]), np.float64)
                    path = np.zeros((dim(left), dim(right), dim(out)))
                    path[slice_a, slice_b, slice_o] = w / np.linalg.norm(w) * np.sqrt(2 * o[0] + 1)
                    paths.append(path)
    return np.stack(paths)


def safe_displacement(
    displacement: Float[Array | np.ndarray, "*n 3"], mask: Bool[Array | np.ndarray, "*n"]
) -> tuple[Float[Array, "*n 3"], Float[Array, "*n"]]:
    """Displacements and distances with masked slots set to (1, 1, 1) Å.

    Masking before the singular operation keeps first and second derivatives
    finite on padded slots.
    """
    safe = jnp.where(mask[..., None], displacement, 1.0)
    return safe, jnp.sqrt(jnp.sum(safe**2, axis=-1))
