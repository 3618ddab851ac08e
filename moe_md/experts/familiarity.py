"""Familiarity: how far an environment is from those that an expert was trained for.

With P the moments of a row (sums over neighbours without parameters, of total density and of
each species' radial density) and, for each kind k of environment (strained crystal, vacancy,
surface, ...) and each species s of the centre, mean m and covariance C of P over many rows

    D_k = [(P - m_ks)^T C_ks^-1 (P - m_ks) / dim P]^1/2            Mahalanobis distance
    d   = softmin_k D_k / limit                                    at most 1 in the domain

Both are smooth in the positions, so that a region may follow them.

Source: P. C. Mahalanobis, Proc. Natl. Inst. Sci. India 2, 49 (1936); moments as in `density_moments`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from moe_md.experts import angular
from moe_md.experts.neighbor_sums import BEYOND, sum_over_neighbors
from moe_md.experts.radial import radial_polynomials
from moe_md.neighbors.capacity import bucket_size
from moe_md.neighbors.components import components_of_rows
from moe_md.neighbors.rows import Neighborhood, map_rows

NUM_RADIAL = (6, 4, 4, 3)  # radial functions for l = 0, 1, ...
CUTOFF_POWER = 4
SHARPNESS = 20.0  # of the soft minimum; it is below the least distance by at most log(kinds) / SHARPNESS
UNKNOWN = 1e3  # distance of environments of a kind and a species that the references do not have
LEAST_EIGENVALUE = 1e-4  # of the correlation matrix
LEAST_SCALE = 1e-3  # of a moment, over the largest one
SAME = 1e-4  # added to the mean square, so that the distance has derivatives at the mean
ROWS_PER_MOMENT = 3  # rows over moments that a covariance needs
QUANTILE = 0.995  # of rows that are in the domain, of those drawn
HOST_CHUNK, HOST_COLUMNS = 128, 32  # rows and columns of the few shapes that are compiled on the host
CHUNK = 4096  # rows at a time under jit


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)  # hashed by identity, as it is part of an expert
class Familiarity:
    """Environments that an expert was trained for; the first kind is the strained crystal."""

    mean: Float[Array | np.ndarray, "kinds species moments"]
    whitening: Float[Array | np.ndarray, "kinds species moments moments"]  # W^T W is the inverse covariance
    known: Bool[Array | np.ndarray, "kinds species"]  # whether there were rows enough
    limit: Float[Array | np.ndarray, ""]  # of the least distance of all kinds
    crystal_limit: Float[Array | np.ndarray, ""]  # of the distance of the first kind
    cutoff: float = field(metadata={"static": True})  # Å

    def distance(self, rows: Neighborhood) -> Float[Array | np.ndarray, " n"]:
        """Distance of each row from all kinds of environments, 1 at the limit of the domain.

        Args:
            rows: in numpy or jax arrays; neighbours beyond the cutoff (skin) do not count.

        Returns:
            In the arrays' own kind. Two continuous derivatives in the displacements.
        """
        return _of_rows(rows, self, _soft_distance)

    def crystal_distance(self, rows: Neighborhood) -> Float[Array | np.ndarray, " n"]:
        """Distance of each row from strained crystals alone, 1 at their limit; as `distance`."""
        return _of_rows(rows, self, _crystal_distance)

    def to_dict(self) -> dict:
        """As plain values and arrays."""
        return {each.name: _plain(getattr(self, each.name)) for each in fields(self)}


def familiarity_from_dict(values: dict) -> Familiarity:
    """The familiarity that `to_dict` described.

    Raises:
        ValueError: a value is missing or unknown, has another shape or is not finite.
    """
    names = [each.name for each in fields(Familiarity)]
    if not isinstance(values, dict) or set(values) != set(names):
        raise ValueError(f"a familiarity must have {', '.join(names)}, got {values!r:.80}.")
    arrays = {name: np.asarray(values[name]) for name in names if name != "cutoff"}
    kinds, species = arrays["known"].shape if arrays["known"].ndim == 2 else (0, 0)
    n = num_moments(species)
    shapes = {
        "mean": (kinds, species, n),
        "whitening": (kinds, species, n, n),
        "known": (kinds, species),
        "limit": (),
        "crystal_limit": (),
    }
    for name, shape in shapes.items():
        if arrays[name].shape != shape or not np.isfinite(arrays[name]).all() or kinds == 0:
            raise ValueError(
                f"{name} of a familiarity must be finite numbers of shape {shape}, got"
                f" {arrays[name].shape}: the checkpoint is damaged."
            )
    return Familiarity(**arrays, cutoff=float(values["cutoff"]))


def num_moments(n_species: int) -> int:
    """Number of moments of a row."""
    first, *others = NUM_RADIAL
    return first * n_species + sum(q * (q + 1) // 2 for q in others)


def moments(rows: Neighborhood, n_species: int, cutoff: float) -> Float[Array, "n moments"]:
    """Moments of each row: radial density of each species, power spectrum of the total density.

    Args:
        rows: `n` rows.
        n_species: number of species that neighbours may have.
        cutoff: Å.
    """
    found = components_of_rows(rows, BEYOND * cutoff)
    x, y, z = (component / cutoff for component in found.displacement)
    squared = x * x + y * y + z * z
    radial = radial_polynomials(squared, max(NUM_RADIAL), CUTOFF_POWER)
    harmonics = angular.solid_harmonics(len(NUM_RADIAL) - 1, x, y, z, squared)
    first, *others = NUM_RADIAL
    is_species = [(found.neighbor_species == s).astype(x.dtype) for s in range(n_species)]
    terms = [g * each for each in is_species for g in radial[:first]]
    terms += [g * c for l, q in enumerate(others, 1) for g in radial[:q] for c in harmonics[l]]
    sums = jnp.stack(sum_over_neighbors(tuple(terms)))
    parts = jax.lax.split(sums, [first * n_species, *((2 * l + 1) * q for l, q in enumerate(others, 1))])
    products = [parts[0]]
    for l, (q, part) in enumerate(zip(others, parts[1:]), 1):
        a, (i, j) = part.reshape(q, 2 * l + 1, -1), np.triu_indices(q)
        products.append(jnp.sum(a[i] * a[j], axis=1))
    return jnp.concatenate(products).T


def fit(kinds: Sequence[Sequence[Neighborhood]], n_species: int, cutoff: float) -> Familiarity:
    """Fit a familiarity to rows of each kind of environment.

    Means and covariances are those of every other group of rows; limits are quantiles of the rest.

    Args:
        kinds: for each kind, the strained crystal first, groups of rows in numpy arrays.
        n_species: number of species.
        cutoff: Å.

    Raises:
        ValueError: no species has rows enough of the strained crystal: `ROWS_PER_MOMENT` for each moment.
    """
    found = [_moments_and_species(groups, n_species, cutoff) for groups in kinds]
    n = num_moments(n_species)
    mean, whitening = np.zeros((len(kinds), n_species, n)), np.zeros((len(kinds), n_species, n, n))
    known = np.zeros((len(kinds), n_species), bool)
    for k, (values, species, group) in enumerate(found):
        for s in range(n_species):
            chosen = values[(species == s) & (group % 2 == 0)]
            if len(chosen) >= ROWS_PER_MOMENT * n:
                mean[k, s], whitening[k, s], known[k, s] = *_whitened(chosen), True
    if not known[0].any():
        raise ValueError(
            f"the strained crystal must have at least {2 * ROWS_PER_MOMENT * n} rows of a species, half of "
            f"them for limits, got {sum(len(rows.mask) for rows in kinds[0])} of all: draw more, domain_rows "
            "of [environments]."
        )
    arrays = (mean.astype(np.float32), whitening.astype(np.float32), known)
    one = np.ones((), np.float32)
    unit = Familiarity(*arrays, one, one, float(cutoff))
    limits = []
    for function, rows in ((_soft_distance, found), (_crystal_distance, found[:1])):
        held_out = [(values[group % 2 == 1], species[group % 2 == 1]) for values, species, group in rows]
        distance = np.concatenate([np.asarray(function(unit, *map(jnp.asarray, each))) for each in held_out])
        limits.append(np.asarray(np.quantile(distance[distance < UNKNOWN / 2], QUANTILE), np.float32))
    return Familiarity(*arrays, *limits, float(cutoff))


def _moments_and_species(
    groups: Sequence[Neighborhood], n_species: int, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Moments of all rows of some groups, species of their centres, and number of their group."""
    values = [
        _on_host(rows, lambda part: _jitted_moments(part, n_species, cutoff)).astype(np.float64)
        for rows in groups
    ]
    species = [np.asarray(rows.center_species) for rows in groups]
    group = np.repeat(np.arange(len(groups)), [len(each) for each in species])
    return np.concatenate(values), np.concatenate(species), group


_jitted_moments = jax.jit(moments, static_argnums=(1, 2))


def _whitened(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean, and W with W^T W the inverse covariance divided by the number of moments."""
    mean, scale = values.mean(axis=0), values.std(axis=0)
    scale = np.maximum(scale, LEAST_SCALE * scale.max())
    scaled = (values - mean) / scale
    eigenvalues, vectors = np.linalg.eigh(scaled.T @ scaled / len(values))
    root = np.sqrt(np.maximum(eigenvalues, LEAST_EIGENVALUE) * len(scale))
    return mean, (vectors / root).T / scale


def _kind_distance(
    familiarity: Familiarity, kind: int, values: Array, center_species: Array
) -> Float[Array, " n"]:
    """D_k of moments."""
    mean, whitening = familiarity.mean[kind], familiarity.whitening[kind]
    total = jnp.zeros(values.shape[0], values.dtype)
    for s in range(mean.shape[0]):
        z = (values - mean[s][None].astype(values.dtype)) @ whitening[s].T.astype(values.dtype)
        distance = jnp.sqrt(jnp.sum(z * z, axis=1) + SAME)
        distance = jnp.where(jnp.asarray(familiarity.known)[kind, s], distance, UNKNOWN)
        total = jnp.where(center_species == s, distance, total)
    return total


def _soft_distance(familiarity: Familiarity, values: Array, center_species: Array) -> Float[Array, " n"]:
    kinds = range(familiarity.mean.shape[0])
    limit = jnp.asarray(familiarity.limit, values.dtype)
    scaled = jnp.stack([_kind_distance(familiarity, k, values, center_species) for k in kinds]) / limit
    return -jax.nn.logsumexp(-SHARPNESS * scaled, axis=0) / SHARPNESS


def _crystal_distance(familiarity: Familiarity, values: Array, center_species: Array) -> Float[Array, " n"]:
    limit = jnp.asarray(familiarity.crystal_limit, values.dtype)
    return _kind_distance(familiarity, 0, values, center_species) / limit


def _of_rows(rows: Neighborhood, familiarity: Familiarity, function) -> Float[Array | np.ndarray, " n"]:
    """A distance of rows, on the host where these are numpy arrays."""
    if isinstance(rows.displacement, Array):
        return map_rows(lambda part: _distance(part, familiarity, function), rows, CHUNK)
    return _on_host(rows, lambda part: _jitted_distance(part, familiarity, function))


def _distance(rows: Neighborhood, familiarity: Familiarity, function) -> Float[Array, " n"]:
    values = moments(rows, familiarity.mean.shape[1], familiarity.cutoff)
    return function(familiarity, values, jnp.asarray(rows.center_species))


_jitted_distance = jax.jit(_distance, static_argnums=2)


def _on_host(rows: Neighborhood, function) -> np.ndarray:
    """A function of rows of numpy arrays, in chunks of few shapes."""
    n, width = rows.mask.shape
    results = []
    columns = HOST_COLUMNS * max(1, -(-width // HOST_COLUMNS))
    for first in range(0, n, HOST_CHUNK):
        part = Neighborhood(*(x[first : first + HOST_CHUNK] for x in rows))
        size = len(part.mask)
        more = ((0, bucket_size(size) - size), (0, columns - width))
        padded = Neighborhood(
            np.pad(part.displacement, (*more, (0, 0)), constant_values=1.0),
            np.pad(part.mask, more),
            np.pad(part.center_species, more[0]),
            np.pad(part.neighbor_species, more),
            np.pad(part.neighbor, more),
        )
        results.append(np.asarray(function(padded))[:size])
    return np.concatenate(results) if results else np.zeros(0, rows.displacement.dtype)


def _plain(value):
    return value if isinstance(value, float) else np.asarray(value)
