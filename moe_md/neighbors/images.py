"""Displacements to nearest images with x, y and z in arrays of their own.

XLA for CPU makes vector instructions of arrays `[n, K]`, and none of arrays `[n, K, 3]`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int, Real

Components = tuple[Array, Array, Array]  # x, y and z, arrays of one shape


def components(vectors: Float[Array | np.ndarray, "*n 3"]) -> Components:
    """x, y and z of vectors."""
    vectors = jnp.asarray(vectors)
    return vectors[..., 0], vectors[..., 1], vectors[..., 2]


def displacements(
    position: Float[Array | np.ndarray, "atoms 3"],
    centers: Int[Array, " n"],
    neighbor: Int[Array, "n K"],
    nearest_image: Callable[[Components], Components],
    beyond: Real[ArrayLike, ""],
) -> Components:
    """Displacements from centres to neighbours, `[n, K]` Å each.

    Args:
        position: in the coordinates of `nearest_image`.
        centers: atoms; the number of atoms where padded.
        neighbor: atoms; the number of atoms where there is none.
        nearest_image: from `nearest_images`.
        beyond: Å, x of slots without a neighbour.
    """
    n_atoms = position.shape[0]
    is_pair = neighbor < n_atoms
    neighbor, centers = jnp.minimum(neighbor, n_atoms - 1), jnp.minimum(centers, n_atoms - 1)

    def difference(x: Array) -> Array:
        of_neighbor = x.at[neighbor].get(mode="promise_in_bounds")
        return of_neighbor - x.at[centers].get(mode="promise_in_bounds")[:, None]

    x, y, z = nearest_image(_each(difference, components(position)))
    return jnp.where(is_pair, x, beyond), jnp.where(is_pair, y, 0.0), jnp.where(is_pair, z, 0.0)


def nearest_images(
    box: Real[ArrayLike, "..."] | Sequence,
    perturbation: Real[ArrayLike, "..."] | None = None,
    *,
    fractional_coordinates: bool = False,
    dtype=None,
) -> Callable[[Components], Components]:
    """The map from differences of positions to displacements of nearest images, Å.

    It is what `jax_md.space.periodic` and `periodic_general` compute, without their `mod`, which
    is slow on CPU.

    Args:
        box: Å, a number, `[3]` edges or `[3, 3]` columns.
        perturbation: a number or `[3, 3]`, applied to displacements.
        fractional_coordinates: whether differences are fractions of the box.
        dtype: that of the differences, for box and perturbation; default their own.

    >>> x, _, _ = nearest_images(10.0)((jnp.asarray(9.0), jnp.asarray(0.0), jnp.asarray(0.0)))
    >>> x.item()
    -1.0
    """
    if isinstance(box, np.ndarray) and box.ndim == 2 and np.array_equal(box, np.diag(np.diagonal(box))):
        box = np.diagonal(box)
    box = jnp.asarray(box, dtype)
    perturbation = None if perturbation is None else jnp.asarray(perturbation, dtype)
    inverse = jnp.linalg.inv(box) if box.ndim == 2 else 1.0 / box

    def nearest_image(difference: Components) -> Components:
        fraction = difference if fractional_coordinates else _times_box(inverse, difference)
        images = jax.lax.stop_gradient(_each(jnp.round, fraction))
        if fractional_coordinates:
            found = _of_fractions(box, _each(jnp.subtract, fraction, images))
        else:
            found = _each(jnp.subtract, difference, _times_box(box, images))
        if perturbation is None:
            return found
        if perturbation.ndim == 0:
            return _each(lambda d: d * perturbation, found)
        return _product(perturbation, found)

    return nearest_image


def _times_box(box: Array, fraction: Components) -> Components:
    if box.ndim == 2:
        return _product(box, fraction)
    edges = [box] * 3 if box.ndim == 0 else [box[axis] for axis in range(3)]
    return _each(jnp.multiply, fraction, edges)


@jax.custom_jvp
def _of_fractions(box: Array, fraction: Components) -> Components:
    """Å. As in jax-md, derivatives by fractional positions are those by positions in Å."""
    return _times_box(box, fraction)


@_of_fractions.defjvp
def _(primals, tangents):
    (box, fraction), (box_dot, fraction_dot) = primals, tangents
    return _of_fractions(box, fraction), _each(jnp.add, fraction_dot, _times_box(box_dot, fraction))


def _each(fn: Callable, *components: Any) -> Components:
    x, y, z = map(fn, *components)
    return x, y, z


def _product(matrix: Array, vector: Components) -> Components:
    x, y, z = (
        matrix[i, 0] * vector[0] + matrix[i, 1] * vector[1] + matrix[i, 2] * vector[2] for i in range(3)
    )
    return x, y, z
