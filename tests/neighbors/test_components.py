"""Displacements of nearest images, component by component, against jax-md's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_md import space

from moe_md.neighbors.components import RowComponents, components_of_rows
from moe_md.neighbors.images import displacements, nearest_images
from moe_md.neighbors.rows import Neighborhood

EDGES = np.array([7.0, 8.0, 9.5])
COLUMNS = np.array([[7.0, 0.8, -0.4], [0.0, 8.0, 0.6], [0.0, 0.0, 9.5]])
STRAIN = np.eye(3) + 0.02 * np.array([[1.0, 0.3, -0.2], [0.1, -0.5, 0.2], [0.0, 0.4, 0.7]])
N_ATOMS = 7
CENTERS = np.array([0, 3, 6, N_ATOMS])
NEIGHBOR = np.array([[1, 2, 5], [0, N_ATOMS, 4], [5, 1, N_ATOMS], [N_ATOMS] * 3])
FRACTION = np.random.default_rng(0).uniform(-0.7, 1.6, (N_ATOMS, 3))  # in the box or not


def jax_md_displacement(box, fractional):
    if np.ndim(box) == 2 or fractional:
        return space.periodic_general(jnp.asarray(box), fractional_coordinates=fractional)[0]
    return space.periodic(jnp.asarray(box))[0]


@pytest.mark.parametrize("perturbation", [None, 1.01, STRAIN], ids=["none", "number", "matrix"])
@pytest.mark.parametrize(
    "box, fractional",
    [(8.0, False), (EDGES, False), (COLUMNS, False), (EDGES, True), (COLUMNS, True)],
    ids=["cube", "edges", "columns", "edges of fractions", "columns of fractions"],
)
def test_they_are_those_of_jax_md(box, fractional, perturbation):
    """And so are their derivatives in positions, box and strain."""
    frame = np.asarray(box) * np.eye(3) if np.ndim(box) < 2 else box
    position = jnp.asarray(FRACTION if fractional else FRACTION @ frame.T)
    displacement_fn = jax_md_displacement(box, fractional)
    keywords = {} if perturbation is None else {"perturbation": jnp.asarray(perturbation)}
    mask = (NEIGHBOR < N_ATOMS) & (CENTERS < N_ATOMS)[:, None]
    weight = np.random.default_rng(1).standard_normal((*mask.shape, 3)) * mask[..., None]

    def expected(position, box, keywords):
        boxed = {"box": box} if fractional else {}
        pairs = jax.vmap(jax.vmap(lambda b, a: displacement_fn(b, a, **boxed, **keywords), (0, None)))
        return pairs(position[NEIGHBOR % N_ATOMS], position[CENTERS % N_ATOMS])

    def found(position, box, keywords):
        images = nearest_images(box, keywords.get("perturbation"), fractional_coordinates=fractional)
        centers, neighbor = jnp.asarray(CENTERS), jnp.asarray(NEIGHBOR)
        return jnp.stack(displacements(position, centers, neighbor, images, 99.0), axis=-1)

    box = jnp.asarray(box)
    D = np.asarray(found(position, box, keywords))
    np.testing.assert_allclose(D[mask], np.asarray(expected(position, box, keywords))[mask], atol=1e-12)
    np.testing.assert_array_equal(D[~mask], [[99.0, 0.0, 0.0]] * np.sum(~mask))

    def gradients(fn):
        weighted = lambda *arguments: jnp.sum(jnp.asarray(weight) * fn(*arguments))  # noqa: E731
        by_position, by_box, by_keywords = jax.grad(weighted, (0, 1, 2))(position, box, keywords)
        # jax-md wraps by a box in Å without a derivative in it.
        return by_position, by_keywords, by_box if fractional else None

    for a, b in zip(*(jax.tree.leaves(gradients(fn)) for fn in (found, expected)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-11)


def test_single_precision_stays_single():
    """Beside a box and a strain in double precision, too."""
    images = nearest_images(COLUMNS, np.float64(1.01), dtype=jnp.float32)
    position = jnp.asarray(FRACTION, jnp.float32)
    found = displacements(position, jnp.asarray(CENTERS), jnp.asarray(NEIGHBOR), images, 9.0)
    assert [x.dtype for x in found] == [jnp.float32] * 3


def test_rows_in_components_are_the_same_rows():
    displacement = np.random.default_rng(2).standard_normal((2, 3, 3))
    mask = np.array([[True, False, True], [False, False, True]])
    species = np.array([[0, 1, 1], [1, 0, 0]])
    rows = components_of_rows(Neighborhood(displacement, mask, species[:, 0], species, species), 12.0)
    assert isinstance(rows, RowComponents)
    found = np.stack(rows.displacement, axis=-1)
    np.testing.assert_array_equal(found[mask], displacement[mask])
    np.testing.assert_array_equal(found[~mask], [[12.0, 0.0, 0.0]] * 3)
    np.testing.assert_array_equal(rows.neighbor_species, species)
