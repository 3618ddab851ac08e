"""Structure, displacements and vibrations of a trajectory, each with an error bar.

A trajectory is divided into blocks of equal length. Each block gives a curve. The
result is the mean of these curves, its error the standard error of that mean. The
error is too small where blocks are shorter than a correlation time.

    g(r)   pairs at r over those of an ideal gas of the same density
    MSD(t) mean over atoms and origins of |R(t0 + t) - R(t0)|^2
    D(nu)  Fourier transform of the mass-weighted velocity autocorrelation
           (Wiener-Khinchin), damped by half a Hann window, of area one
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Real
from scipy import stats

THZ_TO_INVERSE_CM = 33.35640951981521

# A user's values, at each frame and atom, and a box: `[3]` edges or `[3, 3]` columns.
Vectors = Real[ArrayLike, "frames atoms 3"] | Sequence
Mask = Bool[ArrayLike, " atoms"] | Sequence
Box = Real[ArrayLike, "..."] | Sequence


class Curve(NamedTuple):
    """A function with error bars."""

    x: Float[np.ndarray, " m"]
    value: Float[np.ndarray, " m"]
    error: Float[np.ndarray, " m"]  # standard error of `value`
    n_blocks: int


class Deviation(NamedTuple):
    """Difference of two curves, in units of the combined error of a point."""

    largest: float  # over all points
    at: float  # x of the largest difference
    rms: float  # root mean square over points, about 1 where the curves agree
    by_chance: float  # median of `largest` for independent points of two equal curves


def unwrap(position: Vectors, box: Box) -> Float[np.ndarray, "frames atoms 3"]:
    """Positions without jumps across the periodic boundaries.

    Args:
        position: Å; between frames no atom moves by
            half the box.
        box: Å, `[3]` edges or `[3, 3]` columns.

    Returns:
        Å; the first frame is unchanged.
    """
    position, box = _trajectory(position, "position"), _columns(box)
    step = np.diff(position, axis=0)
    step -= np.round(step @ np.linalg.inv(box).T) @ box.T
    return np.concatenate([position[:1], position[:1] + np.cumsum(step, axis=0)])


def radial_distribution(
    position: Vectors,
    box: Box,
    centers: Mask | None = None,
    neighbors: Mask | None = None,
    *,
    r_max: float,
    n_bins: int = 100,
    n_blocks: int = 5,
) -> Curve:
    """Radial distribution function of the atoms of one group around those of another.

    Args:
        position: Å, wrapped or not.
        box: Å, `[3]` edges or `[3, 3]` columns; periodic in all directions.
        centers, neighbors: default all atoms. An atom is not
            its own neighbour.
        r_max: Å, at most half the width of the box.
        n_bins: number of bins of equal width.
        n_blocks: number of blocks for the error.

    Returns:
        g at the middle of each bin, Å. It is normalised by the density of the
        neighbours in the full box, vacuum included.

    Raises:
        ValueError: shapes do not match, `r_max` is too large, a group is empty,
            or there are fewer frames than blocks.

    >>> gas = np.random.default_rng(0).uniform(0, 10, (20, 300, 3))
    >>> g = radial_distribution(gas, [10, 10, 10], r_max=5.0, n_bins=10)
    >>> bool(abs(g.value[2:] - 1).max() < 0.02)
    True
    """
    position, box = _trajectory(position, "position"), _columns(box)
    n_atoms = position.shape[1]
    inverse = np.linalg.inv(box)
    width = 1 / np.linalg.norm(inverse, axis=1).max()
    if not 0 < r_max <= width / 2 + 1e-9:
        raise ValueError(
            f"r_max must be positive and at most half the width of the box, {width / 2:.3f} Å, got {r_max}."
        )
    first, second = _group(centers, n_atoms, "centers"), _group(neighbors, n_atoms, "neighbors")
    edges = np.linspace(0.0, r_max, n_bins + 1)
    same_atom = np.equal.outer(first, second)

    def count(frame):
        displacement = (frame[None, second] - frame[first, None]) @ inverse.T
        displacement = (displacement - np.round(displacement)) @ box.T
        square = np.where(same_atom, np.inf, np.einsum("ijd,ijd->ij", displacement, displacement))
        return np.histogram(np.sqrt(square[square < (1 + 1e-9) * r_max**2]), edges)[0]

    shells = 4 / 3 * np.pi * np.diff(edges**3)
    pairs = same_atom.size - same_atom.sum()
    if pairs == 0:
        raise ValueError(
            f"neighbors must hold an atom beside the centers, got {len(second)} atoms, each its own center."
        )
    ideal = pairs * shells / abs(np.linalg.det(box))
    values = [
        np.mean([count(frame) for frame in block], axis=0) / ideal for block in _blocks(position, n_blocks, 1)
    ]
    return _averaged(0.5 * (edges[:-1] + edges[1:]), values)


def mean_square_displacement(
    position: Vectors,
    interval_ps: float,
    atoms: Mask | None = None,
    *,
    n_lags: int | None = None,
    n_blocks: int = 5,
) -> Curve:
    """Mean square displacement, averaged over atoms and over time origins within each block.

    Args:
        position: Å, unwrapped (`unwrap`).
        interval_ps: time between frames.
        atoms: default all.
        n_lags: longest lag in frames; default half a block.
        n_blocks: number of blocks for the error.

    Returns:
        Å^2 against the lag in ps, starting at zero.

    Raises:
        ValueError: shapes do not match, the group is empty, the interval is not
            positive, or blocks are not longer than `n_lags`.

    >>> line = np.arange(100.0)[:, None, None] * np.array([0.1, 0.0, 0.0])
    >>> msd = mean_square_displacement(line, 0.5)
    >>> float(msd.x[4]), float(msd.value[4].round(6))
    (2.0, 0.16)
    """
    position = _trajectory(position, "position")
    _check_interval(interval_ps)
    blocks = _blocks(position[:, _group(atoms, position.shape[1], "atoms")], n_blocks, 2)
    length = len(blocks[0])
    n_lags = length // 2 if n_lags is None else n_lags
    if not 0 < n_lags < length:
        raise ValueError(
            f"n_lags must be at least 1 and less than the frames of a block, {length}, got {n_lags}."
        )

    def block_curve(block):
        lags = [
            np.mean(np.sum((block[lag:] - block[: length - lag]) ** 2, axis=-1))
            for lag in range(1, n_lags + 1)
        ]
        return np.array([0.0, *lags])

    return _averaged(interval_ps * np.arange(n_lags + 1), [block_curve(block) for block in blocks])


def vibrational_density_of_states(
    velocity: Vectors,
    interval_ps: float,
    masses: Real[ArrayLike, " atoms"] | Sequence | None = None,
    atoms: Mask | None = None,
    *,
    max_THz: float | None = None,
    n_blocks: int = 5,
) -> Curve:
    """Vibrational density of states.

    Args:
        velocity: any unit.
        interval_ps: time between frames; frequencies above 1 / (2 interval) are
            aliased.
        masses: any unit; default equal.
        atoms: default all.
        max_THz: highest frequency returned; default all.
        n_blocks: number of blocks for the error. The resolution is about two over
            the length of a block.

    Returns:
        1/THz against THz, normalised to area one over all frequencies. Multiply a
        frequency by `THZ_TO_INVERSE_CM` for its wave number in 1/cm.

    Raises:
        ValueError: shapes do not match, the group is empty, the interval is not
            positive, blocks are shorter than 4 frames, or all velocities of a block are zero.
    """
    velocity = _trajectory(velocity, "velocity")
    _check_interval(interval_ps)
    n_atoms = velocity.shape[1]
    selected = _group(atoms, n_atoms, "atoms")
    masses = np.ones(n_atoms) if masses is None else np.asarray(masses, float)
    if masses.shape != (n_atoms,):
        raise ValueError(f"masses must have shape [{n_atoms}], got {masses.shape}.")
    mass_weighted = np.sqrt(masses[selected])[:, None] * velocity[:, selected]
    blocks = _blocks(mass_weighted, n_blocks, 4)
    length = len(blocks[0])
    frequency = np.fft.rfftfreq(2 * length, interval_ps)
    window = np.cos(0.5 * np.pi * np.arange(length) / length) ** 2

    def block_curve(block):
        power = np.sum(np.abs(np.fft.rfft(block, 2 * length, axis=0)) ** 2, axis=(1, 2))
        correlation = np.fft.irfft(power)[:length] * window
        density = 2 * np.fft.rfft(correlation, 2 * length).real - correlation[0]
        area = np.trapezoid(density, frequency)
        if not area > 0:
            raise ValueError("velocity must not be zero throughout a block, got a block of zeros.")
        return density / area

    in_range = frequency <= (np.inf if max_THz is None else max_THz)
    return _averaged(frequency[in_range], [block_curve(block)[in_range] for block in blocks])


def compare(a: Curve, b: Curve) -> Deviation:
    """Differences of two curves, in units of their combined error.

    Errors estimated from few blocks are themselves uncertain: the ratio follows
    Student's t distribution, and the largest of many ratios is not small.
    `by_chance` is its median for equal curves with independent points.

    Args:
        a, b: curves at the same x.

    Returns:
        The deviation. Points where both curves are equal and without error are left out.

    Raises:
        ValueError: the curves have different x.
    """
    if a.x.shape != b.x.shape or not np.allclose(a.x, b.x):
        raise ValueError(f"curves must have the same x, got {len(a.x)} and {len(b.x)} points.")
    difference, error = a.value - b.value, np.hypot(a.error, b.error)
    counted = (error > 0) | (difference != 0)
    if not counted.any():
        return Deviation(0.0, float(a.x[0]), 0.0, 0.0)
    with np.errstate(divide="ignore"):
        ratio = np.abs(difference[counted]) / error[counted]
    freedom, n = a.n_blocks + b.n_blocks - 2, int(counted.sum())
    by_chance = stats.t.ppf(0.5 * (1 + 0.5 ** (1 / n)), freedom)
    worst = int(np.argmax(ratio))
    return Deviation(
        float(ratio[worst]), float(a.x[counted][worst]), float(np.sqrt(np.mean(ratio**2))), float(by_chance)
    )


def _averaged(x: np.ndarray, values) -> Curve:
    """Mean of the blocks' curves `[n_blocks, m]` and its standard error."""
    values = np.asarray(values)
    n = len(values)
    return Curve(x, values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(n), n)


def _blocks(values: np.ndarray, n_blocks: int, shortest: int) -> np.ndarray:
    """`[n_blocks, length, ...]`; the first frames are left out where they do not fill a block."""
    if n_blocks < 2:
        raise ValueError(f"n_blocks must be at least 2, got {n_blocks}.")
    length = len(values) // n_blocks
    if length < shortest:
        raise ValueError(
            f"n_frames must be at least {shortest} per block, {shortest * n_blocks}, got {len(values)}."
        )
    last = values[len(values) - n_blocks * length :]
    return last.reshape(n_blocks, length, *values.shape[1:])


def _trajectory(values, name: str) -> np.ndarray:
    """The values as floats; raises `ValueError` unless they have the shape of a trajectory."""
    values = np.asarray(values, float)
    if values.ndim != 3 or values.shape[2] != 3 or not np.isfinite(values).all():
        raise ValueError(
            f"{name} must be finite and of shape [n_frames, n_atoms, 3], got shape {values.shape}."
        )
    return values


def _columns(box) -> np.ndarray:
    """The box as `[3, 3]` columns; raises `ValueError` where it is not a box."""
    box = np.asarray(box, float)
    if box.shape not in ((3,), (3, 3)) or not np.isfinite(box).all():
        raise ValueError(f"box must be three edges or [3, 3] columns (Å), got shape {box.shape}.")
    box = np.diag(box) if box.ndim == 1 else box
    if np.linalg.det(box) == 0:
        raise ValueError(f"box must have a volume, got {box.tolist()}.")
    return box


def _group(mask, n_atoms: int, name: str) -> np.ndarray:
    """Indices of the atoms of a mask, all atoms for None; raises `ValueError` for a wrong or empty mask."""
    mask = np.ones(n_atoms, bool) if mask is None else np.asarray(mask)
    if mask.shape != (n_atoms,) or mask.dtype != bool or not mask.any():
        raise ValueError(
            f"{name} must be {n_atoms} booleans, one of them true, got shape {mask.shape} of {mask.dtype}."
        )
    return np.flatnonzero(mask)


def _check_interval(interval_ps: float) -> None:
    if not 0 < interval_ps < np.inf:
        raise ValueError(f"interval_ps must be positive, got {interval_ps}.")
