"""The builder of a mixture, in jax-md's `(neighbor_fn, energy_fn)` convention."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
from jax.typing import ArrayLike
from jaxtyping import Integer

from moe_md.experts.base import Expert, Params, Potential
from moe_md.experts.chunks import chunked_atom_energies
from moe_md.mixture import checks, energy, neighbors
from moe_md.mixture.config import MixtureConfig, MixtureNeighborFns
from moe_md.neighbors.neighbor_list import Box, neighbor_list
from moe_md.regions import Region


def mixture_neighbor_list(
    displacement_fn: Callable,
    box: Box,
    potentials: Sequence[Potential],
    species: Integer[ArrayLike, " atoms"] | Sequence[int],
    region: Region,
    *,
    dr_threshold: float = 0.4,
    capacity_multiplier: float = 1.25,
    per_particle: bool = False,
    fractional_coordinates: bool = False,
    chunk_size: int = 64,
    inner_potential: tuple[Expert, Params] | None = None,
) -> tuple[MixtureNeighborFns, Callable]:
    """A mixture of experts as jax-md's `(neighbor_fn, energy_fn)`.

    Args:
        displacement_fn: from `jax_md.space`, `periodic` or `periodic_general`.
        box: Å, a number, `[3]` edges or `[3, 3]` columns.
        potentials: experts with their parameters, `(expert, params)` each, the
            most expensive first; for example `checkpoint.potentials`.
        species: index into `Expert.species`.
        region: which expert owns which atom; expert 0 owns the inside.
        dr_threshold: Å, skin of the neighbour list.
        capacity_multiplier: neighbours allocated over neighbours needed; also for
            the atoms of an expert in a dynamic region, and for halos.
        per_particle: return `[n_atoms]` energies instead of their sum.
        fractional_coordinates: positions are fractions of the box; without
            them the box cannot change.
        chunk_size: rows computed at a time.
        inner_potential: a cheap expert and its parameters, of any domain, that
            replaces expert 0 between two of its forces, for multiple time steps:
            `simulate.respa`. It may be expert 1 itself.

    Returns:
        neighbor_fn: `allocate(R)` on the host, then `nbrs.update(R)` under jit.
            `check_domains(R, nbrs)` warns of atoms outside their experts' domains;
            `parts(R, nbrs)` are gates and energies of every atom on every expert.
            With an inner potential, `inner_energy(R, nbrs)` is the energy with it in
            the place of expert 0, and `inner_outer_split(R, nbrs)` that energy and
            the rest of the energy.
        energy_fn: `energy_fn(R, neighbor, *, params=, region=, box=,
            perturbation=)` in eV, with the builder's values as defaults. `box` and
            `perturbation` (a number or `[3, 3]`, applied to displacements) act on
            rows and gates. It is differentiable in positions, parameters, region and
            perturbation. Where the list lacks rows the energy is NaN, never wrong.

    Raises:
        ValueError: experts disagree on species, lengths or shapes do not match,
            a species index is unknown, the cutoff does not fit the box,
            `displacement_fn` does not wrap by the box, or, on use, `box` is given
            without fractional coordinates.
    """
    experts, params = checks.checked_potentials(potentials)
    checks.check_builder_arguments(region, dr_threshold, capacity_multiplier, chunk_size)
    species = checks.checked_species(experts, species)
    if inner_potential is not None:
        checks.check_inner_potential(inner_potential, experts)
    every_expert = experts if inner_potential is None else (*experts, inner_potential[0])
    cutoffs = tuple(sorted({e.cutoff for e in every_expert}, reverse=True))
    checks.check_box(box, cutoffs[0])
    checks.check_displacement(displacement_fn, box, fractional_coordinates)
    list_fns = neighbor_list(
        box,
        cutoffs,
        dr_threshold=dr_threshold,
        capacity_multiplier=capacity_multiplier,
        fractional_coordinates=fractional_coordinates,
    )
    config = MixtureConfig(
        displacement_fn=displacement_fn,
        box=box,
        species=species,
        region=region,
        experts=experts,
        params=params,
        inner_potential=inner_potential,
        dr_threshold=dr_threshold,
        capacity_multiplier=capacity_multiplier,
        per_particle=per_particle,
        fractional_coordinates=fractional_coordinates,
        cutoffs=cutoffs,
        level=tuple(cutoffs.index(e.cutoff) for e in every_expert),
        chunk_size=chunk_size,
        energy_fns=tuple(chunked_atom_energies(e, chunk_size) for e in every_expert),
        list_fns=list_fns,
    )
    return _bound(config), partial(energy.energy, config)


def _check_shift(config: MixtureConfig, shift_fn: Callable, box: Box | None = None) -> None:
    arguments = config.box_arguments(box)
    checks.check_shift(shift_fn, config.box if box is None else box, config.fractional_coordinates, arguments)


def _bound(config: MixtureConfig) -> MixtureNeighborFns:
    """The functions of a mixture; each is one object, as jit compares static functions by identity."""
    update, stale = partial(neighbors.update, config), partial(neighbors.stale, config)
    count_fn = jax.jit(partial(energy.count_out_of_domain, config))
    check_domains = partial(energy.check_domains, config, count_fn)
    has_inner = config.inner_potential is not None
    return MixtureNeighborFns(
        allocate=partial(neighbors.allocate, config, update, stale, check_domains),
        update=update,
        check_domains=check_domains,
        chunk_size=config.chunk_size,
        check_shift=partial(_check_shift, config),
        parts=partial(energy.parts, config),
        gate=jax.jit(partial(energy.gate, config)),
        assign=jax.jit(partial(energy.assign, config)),
        inner_energy=partial(energy.inner_energy, config) if has_inner else None,
        inner_outer_split=partial(energy.inner_outer_split, config) if has_inner else None,
    )
