"""One energy, many experts.

    E(R) = sum_i sum_e g_ie(R) E_i^e(row i)

with the gate g_ie, the share of atom i's energy that expert e supplies. The rows of
each expert's atoms are gathered at a fixed capacity and only those are computed, with
the neighbours within its own cutoff. The cost of an expert is therefore that of its
own atoms. The result is one function of the positions, so its gradient conserves
energy and momentum.

An expert that passes messages gets the rows of its own centres and of a halo: all
atoms within `num_hops - 1` neighbours of them. Energies of the halo are not used.

All functions here take the static `MixtureConfig` first; `builder` binds it.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from moe_md.checks import check_keywords
from moe_md.experts.base import Expert, Params
from moe_md.experts.domain import has_every_row, in_domain, warn_out_of_domain
from moe_md.experts.neighbor_sums import BEYOND
from moe_md.mixture.checks import check_requested
from moe_md.mixture.config import MixtureConfig, MixtureNeighbors, Parts
from moe_md.neighbors.components import components_from_positions
from moe_md.neighbors.neighbor_list import Box, Perturbation
from moe_md.neighbors.rows import Neighborhood, rows_from_neighbor_list, rows_within_cutoff
from moe_md.regions import Reassigned, Region

# jax-md's integrators pass them on to the energy function.
JAX_MD_KEYWORDS = ("kT", "pressure", "dt", "gamma", "tau", "t", "preconditioner_position")


def parts(
    config: MixtureConfig, R: Float[Array | np.ndarray, "atoms 3"], neighbor: MixtureNeighbors, **kwargs
) -> Parts:
    """Gates and energies of every atom on every expert; arguments as of `energy`."""
    return _evaluate(config, _every_expert(config), R, neighbor, **kwargs)


def energy(
    config: MixtureConfig,
    R: Float[Array | np.ndarray, "atoms 3"],
    neighbor: MixtureNeighbors,
    *,
    params: Sequence[Params] | None = None,
    region: Region | None = None,
    box: Box | None = None,
    perturbation: Perturbation | None = None,
    **others,
) -> Float[Array, ""] | Float[Array, " atoms"]:
    """Energy of the mixture in eV, or of each atom (`per_particle`); see `mixture_neighbor_list`.

    Keywords of jax-md's integrators (`JAX_MD_KEYWORDS`) are accepted and have no
    effect; any other one raises `TypeError`.
    """
    check_keywords("energy_fn", others, ("params", "region", "box", "perturbation", *JAX_MD_KEYWORDS))
    gate, energies = parts(
        config, R, neighbor, params=params, region=region, box=box, perturbation=perturbation
    )
    atom_energies = jnp.sum(gate * energies, axis=1)
    return atom_energies if config.per_particle else jnp.sum(atom_energies)


def inner_energy(
    config: MixtureConfig, R: Float[Array | np.ndarray, "atoms 3"], neighbor: MixtureNeighbors, **kwargs
) -> Float[Array, ""]:
    """Energy in eV with the inner potential in the place of expert 0; arguments as of `energy`."""
    gate, energies = _evaluate(config, _inner_experts(config), R, neighbor, **kwargs)
    return jnp.sum(gate * energies)


def inner_outer_split(
    config: MixtureConfig, R: Float[Array | np.ndarray, "atoms 3"], neighbor: MixtureNeighbors, **kwargs
) -> Float[Array, "2"]:
    """eV: the inner energy, and the energy of the mixture less the inner energy."""
    columns = [*_inner_experts(config), (0, 0)]
    gate, energies = _evaluate(config, columns, R, neighbor, **kwargs)
    outer = jnp.sum(gate[:, 0] * (energies[:, -1] - energies[:, 0]))
    return jnp.stack([jnp.sum(gate * energies[:, :-1]), outer])


def gate(
    config: MixtureConfig,
    position: Float[Array | np.ndarray, "atoms 3"],
    neighbors: MixtureNeighbors,
    *,
    region: Region | None = None,
    **kwargs,
) -> Float[Array, "atoms experts"]:
    """Share of each atom's energy that each expert supplies."""
    region = config.region if region is None else region
    displacement_fn = config.displacement(**config.box_arguments(**kwargs))
    return region.gate(
        position, displacement_fn, config.region_neighbors(neighbors.list, neighbors.requested)
    )


def assign(
    config: MixtureConfig,
    position: Float[Array | np.ndarray, "atoms 3"],
    neighbors: MixtureNeighbors,
    region: Reassigned,
    **kwargs,
) -> Reassigned:
    """The `reassigned` region with each atom assigned to the expert with the largest gate here."""
    displacement_fn = config.displacement(**config.box_arguments(**kwargs))
    return region.assigned(
        position, displacement_fn, config.region_neighbors(neighbors.list, neighbors.requested)
    )


def check_domains(
    config: MixtureConfig,
    count_fn: Callable,
    position: Float[Array | np.ndarray, "atoms 3"],
    neighbors: MixtureNeighbors,
    *,
    region: Region | None = None,
    **kwargs,
) -> bool:
    """Whether every expert computes only atoms in its domain; warns if not.

    `count_fn` is the jitted `count_out_of_domain` of the builder.
    """
    if all(map(has_every_row, config.experts)):
        return True
    counts = np.asarray(count_fn(position, neighbors, region, config.box_arguments(**kwargs)))
    return warn_out_of_domain(config.experts, counts, stacklevel=4)


def count_out_of_domain(
    config: MixtureConfig,
    position: Float[Array | np.ndarray, "atoms 3"],
    neighbors: MixtureNeighbors,
    region: Region | None,
    kwargs: dict,
) -> Int[Array, " experts"]:
    """Number of atoms that each expert computes outside its domain."""
    gates = gate(config, position, neighbors, region=region, **kwargs)
    counts = []
    for e, (expert, centers) in enumerate(zip(config.experts, neighbors.centers)):
        idx = neighbors.list.idx[config.level[e]]
        rows = rows_from_neighbor_list(position, config.species, idx, config.displacement(**kwargs), centers)
        counts.append(n_out_of_domain(expert, rows, gate_of(gates, centers, e)))
    return jnp.stack(counts)


def n_out_of_domain(expert: Expert, rows: Neighborhood, gates: Float[Array, " n"]) -> Int[Array, ""]:
    """Number of rows with a gate above zero outside the expert's domain."""
    if has_every_row(expert):
        return jnp.zeros((), int)
    return jnp.sum(~in_domain(expert, rows) & (gates > 0))


def gate_of(
    gates: Float[Array, "atoms experts"], centers: Int[Array, " n"], expert: int
) -> Float[Array, " n"]:
    """Gate of one expert on some centres; zero for padded ones."""
    return gates.at[centers, expert].get(mode="fill", fill_value=0.0)


def active_first(
    centers: Int[Array, " n"], gates: Float[Array, " n"]
) -> tuple[Int[Array, " n"], Float[Array, " n"], Int[Array, ""]]:
    """Centres and their gates, those with a gate above zero first; and the number of these.

    With this number as `wanted`, chunks of rows without a gate cost nothing.
    """
    order = jnp.argsort(~(gates > 0))
    return centers[order], gates[order], jnp.sum(gates > 0)


def _every_expert(config: MixtureConfig) -> list[tuple[int, int]]:
    """For `_evaluate`: each expert computes its own atoms."""
    return [(e, e) for e in range(len(config.experts))]


def _inner_experts(config: MixtureConfig) -> list[tuple[int, int]]:
    """For `_evaluate`: the inner potential computes the atoms of expert 0."""
    return [(len(config.experts), 0), *_every_expert(config)[1:]]


def _evaluate(
    config: MixtureConfig,
    columns: Sequence[tuple[int, int]],
    R: Array | np.ndarray,
    neighbor: MixtureNeighbors,
    params=None,
    region: Region | None = None,
    box=None,
    perturbation=None,
) -> Parts:
    """Gates, and one column of energies for each pair (potential, expert whose atoms it computes)."""
    params = config.params if params is None else params
    params = params[: len(config.experts)]
    if config.inner_potential is not None:
        params = (*params, config.inner_potential[1])
    region = config.region if region is None else region
    displacement_fn = config.displacement(**config.box_arguments(box, perturbation))
    check_requested(region.required_neighbors(config.dr_threshold), neighbor.requested)
    gates = region.gate(R, displacement_fn, config.region_neighbors(neighbor.list, neighbor.requested))
    given = _Given(
        R,
        neighbor,
        gates,
        region.is_dynamic,
        displacement_fn,
        config.nearest_images(R.dtype, box, perturbation),
    )
    energies, is_missing = zip(*(_energies_of(config, given, n, expert, params[n]) for n, expert in columns))
    # An invalid region has NaN gates; an atom may have a gate above zero and no row. (Gates may be
    # below zero by rounding.)
    is_invalid = jnp.any(jnp.isnan(gates)) | jnp.any(jnp.stack(is_missing))
    # The product with all positions makes all forces NaN too; behind a `where` they would be zero.
    invalid = jnp.where(is_invalid, jnp.nan, 0.0).astype(R.dtype) * jnp.sum(R)
    return Parts(gates, jnp.stack(energies, axis=1) + invalid)


class _Given(NamedTuple):
    """What the energies of all potentials depend on."""

    position: Float[Array | np.ndarray, "atoms 3"]
    neighbors: MixtureNeighbors
    gates: Float[Array, "atoms experts"]
    is_dynamic: bool  # whether the gates depend on positions
    displacement_fn: Callable
    nearest_image: Callable  # the same, component by component


def _energies_of(
    config: MixtureConfig, given: _Given, potential: int, expert: int, params
) -> tuple[Array, Array]:
    """Energies `[n_atoms]` eV, by a potential, of the atoms with a gate above zero on an expert.

    The second value, bool, says whether an atom with such a gate lacks its row.
    """
    centers, needed = given.neighbors.centers[expert], jnp.sum(given.gates[:, expert] > 0)
    energies = jnp.zeros(config.n_atoms, given.position.dtype)
    if centers.shape[0] == 0:
        return energies, needed > 0
    of_centers, chunks = gate_of(given.gates, centers, expert), {}
    neighbor = given.neighbors.rows_of_sums[potential]
    if neighbor is not None:
        beyond = BEYOND * config.potentials[potential].cutoff
        rows = components_from_positions(
            given.position, config.species, centers, neighbor, given.nearest_image, beyond
        )
        overflow = jnp.zeros((), bool)
    else:
        if given.is_dynamic and config.potentials[potential].num_hops == 1:
            centers, of_centers, chunks["wanted"] = active_first(centers, of_centers)
        rows, overflow = _rows(config, given, potential, centers)
    is_active = of_centers > 0
    computed = config.energy_fns[potential](params, rows, **chunks)[: centers.shape[0]]
    energies = energies.at[centers].set(jnp.where(is_active, computed, 0.0), mode="drop")
    return energies, overflow | (needed > jnp.sum(is_active))


def _rows(config: MixtureConfig, given: _Given, potential: int, centers: Array) -> tuple[Neighborhood, Array]:
    """Rows of a potential for its centres, then for its halo; and whether packed rows overflow."""
    neighbor = given.neighbors
    expert, max_neighbors = config.potentials[potential], neighbor.max_neighbors[potential]
    idx = neighbor.list.idx[config.level[potential]]
    arguments = (given.position, config.species, idx, given.displacement_fn)
    if max_neighbors is not None:
        rows, occupancy = rows_within_cutoff(
            *arguments, centers, given.nearest_image, expert.cutoff, max_neighbors
        )
        return rows, occupancy > max_neighbors
    overflow = jnp.zeros((), bool)
    if expert.num_hops == 1:
        return rows_from_neighbor_list(*arguments, centers), overflow
    centers = jnp.concatenate([centers, neighbor.halo[potential]])
    rows = rows_from_neighbor_list(*arguments, centers)
    n_rows, n_atoms = centers.shape[0], config.n_atoms
    row_of = jnp.full(n_atoms + 1, n_rows).at[centers].set(jnp.arange(n_rows)).at[n_atoms].set(n_rows)
    return rows._replace(neighbor=row_of[rows.neighbor]), overflow
