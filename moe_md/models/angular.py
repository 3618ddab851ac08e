"""Spherical harmonics and Clebsch-Gordan paths, from e3nn-jax."""

from functools import lru_cache

import e3nn_jax as e3nn
import jax.numpy as jnp
import numpy as np
from jax import Array

Irrep = tuple[int, int]  # (l, parity)


def spherical_harmonics(l_max: int, displacement: Array) -> Array:
    """Real spherical harmonics of the directions, "component" normalisation.

    The sum of squares over m is 2l + 1. Zero vectors are not allowed: mask first.

    Args:
        l_max: highest order.
        displacement: `[..., 3]`.

    Returns:
        `[..., (l_max + 1)^2]`, l blocks in ascending order.
    """
    irreps = e3nn.Irreps([(1, (l, (-1) ** l)) for l in range(l_max + 1)])
    return e3nn.spherical_harmonics(irreps, displacement, normalize=True, normalization="component").array


def harmonic_irreps(l_max: int) -> tuple[Irrep, ...]:
    """Irreps of the spherical harmonics: parity (-1)^l."""
    return tuple((l, (-1) ** l) for l in range(l_max + 1))


def dim(irreps: tuple[Irrep, ...]) -> int:
    """Number of components."""
    return sum(2 * l + 1 for l, _ in irreps)


def slices(irreps: tuple[Irrep, ...]) -> list[slice]:
    """Where each irrep's components lie."""
    ends = np.cumsum([2 * l + 1 for l, _ in irreps])
    return [slice(int(end) - 2 * l - 1, int(end)) for end, (l, _) in zip(ends, irreps)]


def couples(a: Irrep, b: Irrep, out: Irrep) -> bool:
    """Whether `out` occurs in the product of `a` and `b`."""
    return a[1] * b[1] == out[1] and abs(a[0] - b[0]) <= out[0] <= a[0] + b[0]


@lru_cache
def coupling_tensor(
    left: tuple[Irrep, ...], right: tuple[Irrep, ...], out: tuple[Irrep, ...]
) -> np.ndarray:
    """Coefficients of all paths left x right -> out.

    Paths are ordered by output, then left, then right irrep. Each carries the
    Wigner 3j symbols of unit norm times sqrt(2 l_out + 1).

    Returns:
        `[n_paths, dim(left), dim(right), dim(out)]`, float64.
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


def safe_displacement(displacement: Array, mask: Array) -> tuple[Array, Array]:
    """Displacements and distances with masked slots set to a harmless vector.

    Masking before the singular operation keeps first and second derivatives
    finite on padded slots.
    """
    safe = jnp.where(mask[..., None], displacement, 1.0)
    return safe, jnp.sqrt(jnp.sum(safe**2, axis=-1))
