"""Radial functions and angular algebra against closed forms."""

import itertools

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import random_rotation
from depths import short

from moe_md.experts import angular, radial


def directions(n=20):
    return np.random.default_rng(0).standard_normal((n, 3)) * np.linspace(0.1, 9.0, n)[:, None]


@pytest.mark.parametrize("l_max", [0, 1, 3])
def test_squares_of_harmonics_sum_to_their_number(l_max):
    Y = angular.spherical_harmonics(l_max, jnp.asarray(directions()))
    assert Y.shape == (20, (l_max + 1) ** 2)
    for l, s in enumerate(angular.slices(angular.harmonic_irreps(l_max))):
        np.testing.assert_allclose(np.sum(np.asarray(Y[:, s]) ** 2, axis=1), 2 * l + 1, rtol=1e-12)


def test_harmonics_obey_the_addition_theorem():
    a, b = directions()[:10], directions()[10:]
    cosine = np.sum(a * b, axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    A, B = (np.asarray(angular.spherical_harmonics(4, jnp.asarray(x))) for x in (a, b))
    for l, s in enumerate(angular.slices(angular.harmonic_irreps(4))):
        legendre = np.polynomial.legendre.legval(cosine, [0.0] * l + [1.0])
        np.testing.assert_allclose(np.sum(A[:, s] * B[:, s], axis=1), (2 * l + 1) * legendre, atol=1e-12)


def test_harmonics_up_to_two_are_the_known_polynomials():
    x, y, z = (directions() / np.linalg.norm(directions(), axis=1)[:, None]).T
    expected = [
        np.ones_like(x),
        *(3**0.5 * np.array([x, y, z])),
        *(15**0.5 * np.array([x * z, x * y])),
        5**0.5 * (y**2 - (x**2 + z**2) / 2),
        *(15**0.5 * np.array([y * z, (z**2 - x**2) / 2])),
    ]
    Y = angular.spherical_harmonics(2, jnp.asarray(directions()))
    np.testing.assert_allclose(Y, np.stack(expected, axis=1), atol=1e-12)


def rotation_of_harmonics(l, Q):
    """D such that Y(Q r) = D Y(r), by least squares over many directions."""
    r = directions(60)
    s = angular.slices(angular.harmonic_irreps(l))[l]
    before = np.asarray(angular.spherical_harmonics(l, jnp.asarray(r)))[:, s]
    after = np.asarray(angular.spherical_harmonics(l, jnp.asarray(r @ Q.T)))[:, s]
    D, residual, rank, _ = np.linalg.lstsq(before, after, rcond=None)
    assert rank == 2 * l + 1
    return D.T


def test_coupling_commutes_with_rotation():
    Q = random_rotation(1)
    D = [rotation_of_harmonics(l, Q) for l in range(3)]
    checked = 0
    for a, b, o in itertools.product(range(3), repeat=3):
        irreps = ((a, 1),), ((b, 1),), ((o, 1),)
        if angular.couples(*(i[0] for i in irreps)):
            (w,) = angular.coupling_tensor(*irreps)
            turned = np.einsum("ijo,ai,bj,co->abc", w, D[a], D[b], D[o])
            np.testing.assert_allclose(turned, w, atol=1e-12)
            np.testing.assert_allclose(np.sum(w**2), 2 * o + 1, rtol=1e-12)
            checked += 1
    assert checked == 15


@pytest.mark.parametrize(
    "a, b, out, expected",
    [
        ((0, 1), (0, 1), (0, 1), True),
        ((1, -1), (1, -1), (0, 1), True),
        ((1, -1), (1, -1), (1, 1), True),
        ((1, -1), (1, -1), (1, -1), False),  # parity
        ((1, -1), (1, -1), (3, 1), False),  # too long
        ((0, 1), (2, 1), (1, 1), False),  # too short
        ((2, 1), (1, -1), (3, -1), True),
    ],
)
def test_selection_rules(a, b, out, expected):
    assert angular.couples(a, b, out) is expected


def test_paths_are_ordered_by_output_then_left_then_right():
    harmonics = angular.harmonic_irreps(1)
    w = angular.coupling_tensor(harmonics, harmonics, ((0, 1), (1, -1)))
    # 0e x 0e -> 0e, 1o x 1o -> 0e, 0e x 1o -> 1o, 1o x 0e -> 1o
    assert w.shape == (4, 4, 4, 4)
    touched = [tuple(sorted({int(i) for i in axis}) for axis in np.nonzero(path)) for path in w]
    assert touched == [
        ([0], [0], [0]),
        ([1, 2, 3], [1, 2, 3], [0]),
        ([0], [1, 2, 3], [1, 2, 3]),
        ([1, 2, 3], [0], [1, 2, 3]),
    ]


def test_slices_cover_the_irreps():
    irreps = ((0, 1), (2, -1), (1, 1))
    assert angular.dim(irreps) == 9
    assert angular.slices(irreps) == [slice(0, 1), slice(1, 6), slice(6, 9)]


def test_masked_displacements_are_harmless():
    displacement = jnp.array([[[3.0, 0.0, 4.0], [0.0, 0.0, 0.0]]])
    mask = jnp.array([[True, False]])

    def distance(D):
        return jnp.sum(angular.safe_displacement(D, mask)[1])

    assert angular.safe_displacement(displacement, mask)[1][0, 0] == 5.0
    np.testing.assert_allclose(jax.grad(distance)(displacement), [[[0.6, 0.0, 0.8], [0.0, 0.0, 0.0]]])
    assert np.isfinite(jax.hessian(distance)(displacement)).all()


@pytest.mark.parametrize("p", [2.0, 3.0, 6.0])
def test_envelope_is_one_at_zero_and_flat_at_the_cutoff(p):
    def u(x):
        return radial.polynomial_cutoff(x, p)

    assert u(0.0) == 1.0
    inside = 1.0 - 1e-9
    for f, bound in ((u, 1e-14), (jax.grad(u), 1e-12), (jax.grad(jax.grad(u)), 1e-5)):
        assert abs(f(inside)) < bound
        assert f(1.0) == 0.0 and f(1.3) == 0.0
    # The third derivative does not vanish: the order of contact is two, no more.
    assert abs(jax.grad(jax.grad(jax.grad(u)))(inside)) > 1.0
    x = np.linspace(0.0, 1.0, 50)
    assert (np.diff(u(x)) < 1e-15).all()


def test_envelope_at_half_by_hand():
    # p = 6: 1 - 28 / 64 + 48 / 128 - 21 / 256 = 219 / 256
    np.testing.assert_allclose(radial.polynomial_cutoff(jnp.array(0.5), 6.0), 219 / 256, rtol=1e-14)


def test_bessel_functions_are_sines():
    x = np.linspace(1e-3, 1.0, 40)
    n = np.arange(1, 11)
    expected = np.sin(np.pi * x[:, None] * n) / (np.pi * x[:, None])
    np.testing.assert_allclose(jnp.stack(radial.bessel(jnp.asarray(x), 10), axis=-1), expected, atol=1e-10)


def test_radial_basis_is_zero_on_masked_slots_and_beyond():
    distance, mask = jnp.array([1.0, 2.9, 3.0, 4.0, 1.0]), jnp.array([True, True, True, True, False])
    basis = np.asarray(radial.radial_basis(distance, mask, 3.0, 4, 6.0))
    assert (basis[:2] != 0).all() and (basis[2:] == 0).all()


@pytest.mark.parametrize("l_max", short(range(7), only=[0, 3]))
def test_harmonics_are_those_of_e3nn(l_max):
    vectors = jax.random.normal(jax.random.key(l_max), (40, 3), jnp.float64)
    irreps = e3nn.Irreps([(1, (l, (-1) ** l)) for l in range(l_max + 1)])
    theirs = e3nn.spherical_harmonics(irreps, vectors, normalize=True, normalization="component").array
    np.testing.assert_allclose(angular.spherical_harmonics(l_max, vectors), theirs, atol=1e-13)
