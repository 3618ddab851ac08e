"""Curves of trajectories against closed forms and ASE."""

import ase.build
import numpy as np
import pytest
from ase.geometry.rdf import get_rdf
from scipy import stats

from moe_md.analysis.dynamics import (
    THZ_TO_INVERSE_CM,
    Curve,
    compare,
    mean_square_displacement,
    radial_distribution,
    unwrap,
    vibrational_density_of_states,
)

BOX = np.array([[9.0, 2.0, 0.0], [0.0, 8.0, 1.0], [0.0, 0.0, 10.0]])  # columns


def test_ideal_gas_in_a_skewed_box():
    """g is one at every distance, and its errors have the size of the deviations."""
    gas = np.random.default_rng(0).uniform(-1, 2, (100, 60, 3)) @ BOX.T  # some outside the box
    g = radial_distribution(gas, BOX, r_max=3.8, n_bins=20, n_blocks=10)
    score = (g.value - 1) / g.error
    assert np.abs(g.value[5:] - 1).max() < 0.05
    assert np.abs(score).max() < stats.t.ppf(1 - 1e-3 / 20, 9) and 0.5 < np.sqrt(np.mean(score**2)) < 1.7
    some = np.arange(60) < 20
    between = radial_distribution(gas, BOX, some, ~some, r_max=3.8, n_bins=10)
    np.testing.assert_allclose(between.value[3:], 1.0, atol=0.1)


def test_radial_distribution_of_a_crystal_agrees_with_ase():
    atoms = ase.build.bulk("Pt", a=3.92, cubic=True) * 3
    rng = np.random.default_rng(1)
    frames = [atoms.positions + 0.1 * rng.normal(size=atoms.positions.shape) for _ in range(4)]
    g = radial_distribution(frames, atoms.cell.lengths(), r_max=5.5, n_bins=55, n_blocks=2)
    expected = []
    for positions in frames:
        atoms.positions = positions
        expected.append(get_rdf(atoms, 5.5, 55)[0])
    # ASE counts n, not n - 1, other atoms per atom.
    np.testing.assert_allclose(g.value * (107 / 108), np.mean(expected, axis=0), rtol=1e-6, atol=1e-9)
    shell = g.x < 3.36
    volumes = 4 / 3 * np.pi * 0.1**3 * (np.arange(1, 56) ** 3 - np.arange(55) ** 3)
    neighbours = np.sum((g.value * volumes)[shell]) * 107 / atoms.get_volume()
    assert neighbours == pytest.approx(12.0)


def test_unwrap_removes_jumps_across_periodic_boundaries():
    rng = np.random.default_rng(2)
    walk = np.cumsum(rng.normal(0, 0.4, (200, 5, 3)), axis=0)
    wrapped = (walk @ np.linalg.inv(BOX).T % 1.0) @ BOX.T
    np.testing.assert_allclose(unwrap(wrapped, BOX) - wrapped[0], walk - walk[0], atol=1e-10)


def test_mean_square_displacement_of_brownian_motion():
    D, interval = 0.3, 0.02  # Å^2/ps, ps
    steps = np.random.default_rng(3).normal(0, np.sqrt(2 * D * interval), (2000, 40, 3))
    msd = mean_square_displacement(np.cumsum(steps, axis=0), interval, n_lags=20, n_blocks=8)
    assert msd.x[0] == msd.value[0] == msd.error[0] == 0.0 and len(msd.x) == 21
    np.testing.assert_allclose(msd.value[1:], 6 * D * msd.x[1:], rtol=0.05)
    assert np.abs((msd.value - 6 * D * msd.x)[1:] / msd.error[1:]).max() < 5
    free = np.arange(100.0)[:, None, None] * np.array([[0.1, 0, 0], [0, 0, 0.3]])
    still = mean_square_displacement(free, 0.5, np.array([True, False]))
    np.testing.assert_allclose(still.value, (0.2 * still.x) ** 2, atol=1e-12)


def test_density_of_states_of_oscillators_peaks_at_their_frequencies():
    interval, rng = 0.01, np.random.default_rng(4)
    t, frequency = interval * np.arange(3000), np.array([3.0, 12.0])
    phase = rng.uniform(0, 2 * np.pi, (2, 3))
    velocity = np.sin(2 * np.pi * frequency[:, None] * t[:, None, None] + phase)
    both = vibrational_density_of_states(velocity, interval, masses=[3.0, 1.0])
    assert np.trapezoid(both.value, both.x) == pytest.approx(1.0)
    low = both.x < 7
    assert both.x[np.argmax(np.where(low, both.value, 0))] == pytest.approx(3.0, abs=both.x[1])
    assert both.x[np.argmax(np.where(low, 0, both.value))] == pytest.approx(12.0, abs=both.x[1])
    # Areas are proportional to mass times velocity squared.
    assert np.trapezoid(both.value[low], both.x[low]) == pytest.approx(0.75, abs=0.01)
    one = vibrational_density_of_states(velocity, interval, atoms=np.array([False, True]), max_THz=20.0)
    assert one.x[np.argmax(one.value)] == pytest.approx(12.0, abs=one.x[1]) and one.x[-1] <= 20.0
    assert pytest.approx(400.28, abs=0.01) == 12.0 * THZ_TO_INVERSE_CM


def test_vibration_is_the_transform_of_the_autocorrelation():
    """Against a direct sum, without FFT."""
    velocity = np.random.default_rng(5).normal(size=(40, 3, 3)).cumsum(axis=0)
    found = vibrational_density_of_states(velocity, 0.1, n_blocks=2)
    expected = []
    for block in (velocity[:20], velocity[20:]):
        c = np.array([np.sum(block[lag:] * block[: 20 - lag]) for lag in range(20)])
        c *= 0.5 * (1 + np.cos(np.pi * np.arange(20) / 20))
        d = c[0] + 2 * np.cos(2 * np.pi * np.outer(found.x, 0.1 * np.arange(1, 20))) @ c[1:]
        expected.append(d / np.trapezoid(d, found.x))
    np.testing.assert_allclose(found.value, np.mean(expected, axis=0), atol=1e-12)
    np.testing.assert_allclose(found.error, np.abs(np.subtract(*expected)) / 2, atol=1e-12)


def test_largest_deviation_of_equal_curves_has_the_stated_median():
    rng, x = np.random.default_rng(6), np.arange(30.0)

    def noisy(n_blocks, shift=0.0):
        values = rng.normal(shift, 1.0, (n_blocks, 30))
        return Curve(x, values.mean(0), values.std(0, ddof=1) / np.sqrt(n_blocks), n_blocks)

    found = [compare(noisy(5), noisy(5)) for _ in range(400)]
    assert np.mean([d.largest > d.by_chance for d in found]) == pytest.approx(0.5, abs=0.1)
    shifted = noisy(20)
    shifted.value[7] += 10.0
    d = compare(shifted, noisy(20))
    assert d.at == 7.0 and d.largest > 3 * d.by_chance
    same = noisy(5)
    assert compare(same, same).largest == 0.0
    exact = Curve(x, x, np.zeros(30), 5)
    assert (
        compare(exact, exact).largest == 0.0 and compare(exact, exact._replace(value=x + 1)).largest == np.inf
    )


def test_bad_input():
    gas = np.zeros((10, 4, 3)) + np.arange(4)[:, None]
    with pytest.raises(
        ValueError, match="r_max must be positive and at most half the width of the box, 2.500 Å, got 3"
    ):
        radial_distribution(gas, [5, 5, 5], r_max=3)
    with pytest.raises(ValueError, match="box must be three edges"):
        radial_distribution(gas, 5, r_max=2)
    with pytest.raises(ValueError, match="centers must be 4 booleans, one of them true"):
        radial_distribution(gas, [5, 5, 5], np.zeros(4, bool), r_max=2)
    with pytest.raises(ValueError, match="neighbors must hold an atom beside the centers"):
        radial_distribution(gas, [5, 5, 5], np.arange(4) == 0, np.arange(4) == 0, r_max=2)
    with pytest.raises(ValueError, match="n_frames must be at least 2 per block, 12, got 10"):
        mean_square_displacement(gas, 0.1, n_blocks=6)
    with pytest.raises(
        ValueError, match="n_lags must be at least 1 and less than the frames of a block, 2, got 2"
    ):
        mean_square_displacement(gas, 0.1, n_lags=2)
    with pytest.raises(ValueError, match="interval_ps must be positive, got 0"):
        mean_square_displacement(gas, 0)
    with pytest.raises(ValueError, match=r"velocity must be finite and of shape \[n_frames, n_atoms, 3\]"):
        vibrational_density_of_states(np.zeros((4, 3)), 0.1)
    with pytest.raises(ValueError, match="masses must have shape"):
        vibrational_density_of_states(gas, 0.1, [1.0], n_blocks=2)
    with pytest.raises(ValueError, match="velocity must not be zero"):
        vibrational_density_of_states(np.zeros((10, 4, 3)), 0.1, n_blocks=2)
    with pytest.raises(ValueError, match="n_blocks must be at least 2"):
        vibrational_density_of_states(gas, 0.1, n_blocks=1)
    a = Curve(np.arange(3.0), np.zeros(3), np.ones(3), 5)
    with pytest.raises(ValueError, match="curves must have the same x"):
        compare(a, a._replace(x=np.arange(3.0) + 1))
