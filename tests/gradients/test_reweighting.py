"""Reweighted averages of harmonic ensembles, whose averages are known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moe_md as mm
from moe_md import units
from moe_md.gradients.reweighting import (
    Frames,
    average,
    frame_energies,
    free_energy_difference,
    require_enough,
    reweight,
    sampled,
)

T, K, N = 300.0, 3.0, 4  # K, eV/Å^2, atoms
SITES = np.random.default_rng(5).normal(size=(N, 3))


def energy_fn(R, k, shift=0.0):
    """An Einstein crystal."""
    return 0.5 * k * jnp.sum((R - SITES - shift) ** 2)


def einstein(k=K, temperature_K=T, n_frames=40_000, seed=0):
    """Independent frames of it."""
    width = np.sqrt(units.kB * temperature_K / k)
    R = SITES + width * np.random.default_rng(seed).normal(size=(n_frames, N, 3))
    return sampled(energy_fn, jnp.asarray(R), k, temperature_K=temperature_K)


def square(R):
    return jnp.sum((R - SITES[None]) ** 2, axis=(1, 2))


@pytest.fixture(scope="module")
def frames():
    return einstein()


def mean_square(frames, k, temperature_K=None):
    return average(
        reweight(frames, frame_energies(energy_fn, frames.position, k), temperature_K=temperature_K),
        square(frames.position),
    )


def test_a_square_by_its_closed_form(frames):
    """<x^2> = 12 kT / k, at k and beside it, and with it its first two derivatives;
    within five standard errors.
    """
    exact = 3 * N * units.kB * T / K
    error = exact * np.sqrt(2 / (3 * N) / len(frames.energy))
    assert abs(mean_square(frames, K) - exact) < 5 * error
    np.testing.assert_allclose(mean_square(frames, 1.05 * K), exact / 1.05, rtol=0.01)
    # d<x^2>/dk = -<x^2> / k, an estimate from the fourth moment: variance of x^2 (x^2 - <x^2>) / 2 kT.
    n = len(frames.energy)
    x2 = np.asarray(square(frames.position))
    spread = np.std((x2 - x2.mean()) ** 2) / (2 * units.kB * T) / np.sqrt(n)
    assert abs(jax.grad(mean_square, 1)(frames, K) + exact / K) < 5 * spread
    # Heat: d<x^2>/dT = <x^2> / T, with an error of the same origin.
    assert abs(jax.grad(mean_square, 2)(frames, K, T) - exact / T) < 5 * spread * K / T


def test_gradients_are_the_fluctuation_formula_and_central_differences(frames):
    few = Frames(frames.position[:500], frames.energy[:500], frames.temperature_K)
    found = jax.grad(mean_square, 1)(few, 1.1 * K)
    # <dO/dk> - (<O dU/dk> - <O><dU/dk>) / kT with dU/dk = x^2 / 2, O = x^2.
    w = np.asarray(reweight(few, frame_energies(energy_fn, few.position, 1.1 * K)).weight)
    x2 = np.asarray(square(few.position))
    np.testing.assert_allclose(found, -(w @ x2**2 - (w @ x2) ** 2) / 2 / (units.kB * T), rtol=1e-10)
    for argument, x, h in ((1, 1.1 * K, 1e-3), (2, 1.1 * T, 1e-1)):

        def at(x, argument=argument):
            return mean_square(few, x, T) if argument == 1 else mean_square(few, K, x)

        wanted = (8 * (at(x + h) - at(x - h)) - (at(x + 2 * h) - at(x - 2 * h))) / (12 * h)
        np.testing.assert_allclose(jax.grad(at)(x), wanted, rtol=1e-8)
        np.testing.assert_allclose(jax.jacfwd(at)(x), wanted, rtol=1e-8)


def test_free_energy_by_its_closed_form(frames):
    """F = -kT ln sqrt(2 pi kT / k) for each of 12 coordinates; its slope is <dU/dk>, exact frame by frame."""

    def difference(k):
        return free_energy_difference(frames, frame_energies(energy_fn, frames.position, k))

    np.testing.assert_allclose(difference(1.1 * K), 6 * units.kB * T * np.log(1.1), rtol=0.02)
    np.testing.assert_allclose(jax.grad(difference)(1.1 * K), mean_square(frames, 1.1 * K) / 2, rtol=1e-10)


def test_effective_sample_size_by_its_closed_form(frames):
    """Shifted by d along one coordinate: ln w = k d x / kT + ..., of entropy k d^2 / 2 kT below ln n."""
    for d in (0.02, 0.05):
        shift = np.zeros((N, 3))
        shift[0, 0] = d
        found = reweight(frames, frame_energies(energy_fn, frames.position, K, shift))
        wanted = len(frames.energy) * np.exp(-K * d**2 / (2 * units.kB * T))
        np.testing.assert_allclose(found.effective_size, wanted, rtol=0.01)
        np.testing.assert_allclose(np.sum(found.weight), 1.0, rtol=1e-12)


def test_it_tells_when_frames_no_longer_count(frames):
    near = reweight(frames, frame_energies(energy_fn, frames.position, 1.01 * K))
    far = reweight(frames, frame_energies(energy_fn, frames.position, 2.0 * K))
    assert near.enough and not far.enough
    require_enough(near)
    with pytest.raises(
        ValueError,
        match=r"effective sample size must be at least least_share = 0.9 of 40000, got [\d.]+\. Sample again",
    ):
        require_enough(far)
    require_enough(far, least_share=0.05)
    assert jax.jit(lambda k: reweight(frames, frame_energies(energy_fn, frames.position, k)).enough)(1.01 * K)


def test_far_frames_give_finite_weights(frames):
    """One frame has all the weight; nothing overflows, also in the gradient."""
    found = reweight(frames, frame_energies(energy_fn, frames.position, 1e6 * K))
    assert 1 <= found.effective_size < 1.01 and np.isfinite(found.weight).all()
    assert np.isfinite(
        jax.grad(lambda k: reweight(frames, frame_energies(energy_fn, frames.position, k)).effective_size)(
            1e6 * K
        )
    )


def test_a_frame_that_is_no_number_spoils_all(frames):
    energy = frames.energy.at[3].set(jnp.nan)
    found = reweight(frames, energy)
    assert np.isnan(found.weight).all() and np.isnan(found.effective_size) and not found.enough
    with pytest.raises(ValueError, match="energy must be finite for every frame"):
        require_enough(found)
    assert np.isnan(reweight(frames, frames.energy.at[3].set(jnp.inf)).effective_size)


def test_a_fit_that_samples_anew():
    """From 3 to 6 eV/Å^2 by what <x^2> should be: frames are sampled again whenever too few still count."""
    wanted = 3 * N * units.kB * T / 6.0

    @jax.jit
    def loss(log_k, frames):
        weights = reweight(frames, frame_energies(energy_fn, frames.position, jnp.exp(log_k)))
        return jnp.log(average(weights, square(frames.position)) / wanted) ** 2, weights

    log_k, samplings = jnp.log(3.0), 1
    frames = einstein(3.0, n_frames=4000)
    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    for n in range(60):
        (_, weights), slope = step(log_k, frames)
        if not weights.enough:
            samplings += 1
            frames = einstein(float(jnp.exp(log_k)), n_frames=4000, seed=n)
            (_, weights), slope = step(log_k, frames)
            assert weights.effective_size > 3999
        log_k = log_k - 0.1 * slope
    assert 2 < samplings < 30
    np.testing.assert_allclose(jnp.exp(log_k), 6.0, rtol=0.03)


@pytest.mark.thorough
def test_frames_of_a_mixture():
    """Their energies are those of the mixture, and gradients reach its parameters and its region."""
    from jax_md import space

    experts = [mm.experts.lennard_jones(("Ar",), 5.0, epsilon=e, sigma=3.4) for e in (0.010, 0.012)]
    params = [e.init(None) for e in experts]
    rng = np.random.default_rng(0)
    R = jnp.asarray(
        3.9 * np.stack(np.meshgrid(*[range(3)] * 3), -1).reshape(-1, 3) + 0.1 * rng.normal(size=(5, 27, 3))
    )
    region = mm.regions.around([13], 2.0, 3.0)
    neighbor_fn, mixture = mm.mixture_neighbor_list(
        space.periodic(11.7)[0], 11.7, mm.experts.potentials(experts, params), np.zeros(27, int), region
    )
    neighbors = neighbor_fn.allocate(R[0], extra_capacity=10)

    def energy_fn(R, params, region):
        return mixture(R, neighbors.update(R), params=params, region=region)

    frames = sampled(energy_fn, R, params, region, temperature_K=60.0)
    np.testing.assert_allclose(frames.energy, [mixture(x, neighbor_fn.allocate(x)) for x in R], rtol=1e-12)

    def mean(epsilon, width):
        trees = [{**params[0], "epsilon": epsilon}, params[1]]
        energy = frame_energies(energy_fn, R, trees, mm.regions.Around(region.seeds, region.r_core, width))
        return average(reweight(frames, energy), R[:, 13, 0])

    h = 1e-4
    for n, x in enumerate((0.011, 3.1)):

        def at(y, n=n):
            return mean(y, 3.1) if n == 0 else mean(0.011, y)

        wanted = (8 * (at(x + h * x) - at(x - h * x)) - (at(x + 2 * h * x) - at(x - 2 * h * x))) / (
            12 * h * x
        )
        np.testing.assert_allclose(jax.grad(at)(x), wanted, rtol=1e-6)


def test_bad_arguments(frames):
    for message, call in (
        (r"energy must have shape \(40000,\)", partial(reweight, frames, jnp.zeros(3))),
        ("least_share must be positive, got 0", partial(reweight, frames, frames.energy, least_share=0.0)),
        ("least_share must not exceed 1, got 1.5", partial(reweight, frames, frames.energy, least_share=1.5)),
        (
            "temperature_K must be positive, got -3",
            partial(sampled, energy_fn, frames.position[:2], K, temperature_K=-3.0),
        ),
        ("position must hold frames", partial(sampled, energy_fn, frames.position[:0], K, temperature_K=T)),
    ):
        with pytest.raises(ValueError, match=message):
            call()
