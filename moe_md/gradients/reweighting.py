"""Averages at other parameters than those of sampling: trajectory reweighting.

Frames x_i of the canonical ensemble of U_0 at T_0 represent that of U at T with the factors

    w_i ~ exp(-U(x_i) / kT + U_0(x_i) / kT_0),    sum_i w_i = 1,

and the derivative of an average, <dO/dt> - (<O dU/dt> - <O><dU/dt>) / kT, follows
from automatic differentiation of the factors. Nothing is differentiated through
the dynamics, so the length of the trajectory and chaos do not matter. The method
holds as long as the ensembles overlap. The effective sample size is
exp(-sum_i w_i ln w_i): where it falls below a share of the frames (the source has
0.9), sample again at the current parameters.

Source: Thaler and Zavadlav, Nat. Commun. 12, 6884 (2021), doi:10.1038/s41467-021-27241-4 (DiffTRe).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Real

from moe_md import units
from moe_md.checks import check_positive


class Frames(NamedTuple):
    """Sampled frames with their energies and temperature."""

    position: Any  # [frames, ...], an array or a pytree of them
    energy: Float[Array, " frames"]  # eV, at the parameters of sampling
    temperature_K: Float[Array, ""]  # of sampling


class Weights(NamedTuple):
    """Reweighting factors of frames."""

    weight: Float[Array, " frames"]  # sum 1
    effective_size: Float[Array, ""]  # at least 1, at most the frames; NaN where an energy is not finite
    enough: Bool[Array, ""]  # effective_size is at least the share asked for


def frame_energies(energy_fn: Callable, position, *args, remat: bool = True) -> Float[Array, " frames"]:
    """Energies of frames, one after the other.

    Args:
        energy_fn: `energy_fn(position, *args)` in eV, of one frame. With a neighbour
            list, the function updates it: `energy_fn(R, nbrs.update(R), params=params)`;
            the caller checks for overflow.
        position: `[frames, ...]`, an array or a pytree of them.
        *args: parameters and other arguments of `energy_fn`.
        remat: recompute each frame for the gradient, instead of storing intermediate values.

    Returns:
        eV, differentiable in all arguments.
    """
    of_one = jax.checkpoint(energy_fn) if remat else energy_fn
    return jax.lax.map(lambda R: of_one(R, *args), position)


def sampled(energy_fn: Callable, position, *args, temperature_K: Real[ArrayLike, ""]) -> Frames:
    """Frames of an ensemble with their energies at the parameters of sampling, as constants.

    Args:
        energy_fn, position, *args: as in `frame_energies`; the parameters are those of sampling.
        temperature_K: of sampling.

    Raises:
        ValueError: the temperature is not positive, or there is no frame.
    """
    check_positive("temperature_K", temperature_K)
    if len(jax.tree.leaves(position)[0]) == 0:
        raise ValueError("position must hold frames, got none.")
    energy = frame_energies(energy_fn, position, *args, remat=False)
    return Frames(position, jax.lax.stop_gradient(energy), jnp.asarray(temperature_K, energy.dtype))


def reweight(
    frames: Frames,
    energy: Real[ArrayLike, " frames"] | Sequence,
    *,
    temperature_K: Real[ArrayLike, ""] | None = None,
    least_share: float = 0.9,
) -> Weights:
    """The factors of frames at other energies.

    Args:
        frames: from `sampled`.
        energy: eV, of the same frames at the current parameters; the
            factors are differentiable in it.
        temperature_K: of the new ensemble; default that of sampling. Differentiable too.
        least_share: smallest effective share of the frames for `enough`, in (0, 1].

    Returns:
        Weights, all finite, or all NaN where an energy is not finite.

    Raises:
        ValueError: lengths do not match, or a number is out of range.

    >>> frames = Frames(jnp.zeros(4), jnp.zeros(4), jnp.asarray(300.0))
    >>> float(reweight(frames, jnp.full(4, 2.0)).effective_size)  # a constant shift changes nothing
    4.0
    """
    check_positive("least_share", least_share)
    energy = jnp.asarray(energy)
    if energy.shape != frames.energy.shape or energy.ndim != 1:
        raise ValueError(
            f"energy must have shape {frames.energy.shape}, as the frames have, got {energy.shape}."
        )
    if least_share > 1:
        raise ValueError(f"least_share must not exceed 1, got {least_share}.")
    kT_0 = units.kB * frames.temperature_K
    kT = kT_0 if temperature_K is None else units.kB * temperature_K
    log_ratio = frames.energy / kT_0 - energy / kT
    # One non-finite value makes all NaN: an average without a frame would belong to another ensemble.
    log_ratio = log_ratio + jnp.where(jnp.all(jnp.isfinite(log_ratio)), 0.0, jnp.nan)
    log_weight = jax.nn.log_softmax(log_ratio)
    weight = jnp.exp(log_weight)
    # Where a weight is zero by underflow so is its share of the entropy.
    effective = jnp.exp(-jnp.sum(jnp.where(weight > 0, weight * log_weight, 0.0 * log_ratio)))
    return Weights(weight, effective, effective >= least_share * energy.shape[0])


def average(weights: Weights, observable) -> Any:
    """Mean of an observable: leaves `[frames, ...]` of a pytree become `[...]`."""
    return jax.tree.map(lambda x: jnp.tensordot(weights.weight, x, 1), observable)


def require_enough(weights: Weights, *, least_share: float = 0.9) -> None:
    """Raise where too few frames count; on the host.

    Raises:
        ValueError: the effective sample size is below `least_share` of the
            frames, or not finite: sample again at the current parameters.
    """
    n = weights.weight.shape[0]
    size = float(weights.effective_size)
    if not np.isfinite(size):
        raise ValueError("energy must be finite for every frame, got NaN or infinity.")
    if size < least_share * n:
        raise ValueError(
            "frames must overlap with the ensemble of the parameters: "
            f"their effective sample size must be at least least_share = {least_share} of {n}, "
            f"got {size:.1f}. Sample again at the current parameters."
        )


def free_energy_difference(frames: Frames, energy: Real[Array | np.ndarray, " frames"]) -> Float[Array, ""]:
    """F - F_0 = -kT ln <exp(-(U - U_0) / kT)>_0 in eV, at the temperature of sampling.

    Its gradient is <dU/dt>.

    Source: Zwanzig, J. Chem. Phys. 22, 1420 (1954).
    """
    kT = units.kB * frames.temperature_K
    return -kT * (jax.nn.logsumexp((frames.energy - energy) / kT) - jnp.log(1.0 * energy.shape[0]))
