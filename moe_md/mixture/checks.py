"""Checks of the arguments of a mixture."""

import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Bool, Int, Integer, Real

from moe_md.checks import check_value
from moe_md.experts.base import Expert, Params
from moe_md.neighbors import neighbor_list as lists
from moe_md.regions import SupportNeighbors, SupportRequest, check_region
from moe_md.regions.protocol import flat_requests

MAX_EDGE = 1e4  # Å, of a box
NEAR_HALF = 0.45  # of a lattice vector: its nearest image is itself
SAME_FRACTION = 1e-5  # of a lattice vector, largest difference of two boxes that are meant to be one


@lru_cache
def _structure_of(init: Callable):
    return jax.tree.structure(jax.eval_shape(init, jax.random.key(0)))


def checked_potentials(potentials) -> tuple[tuple[Expert, ...], tuple[Params, ...]]:
    """The experts and their parameters; `ValueError` unless they fit each other."""
    if not (isinstance(potentials, (tuple, list)) and potentials and all(map(_is_potential, potentials))):
        raise ValueError(f"potentials must be pairs (expert, params), at least one, got {potentials!r:.80}.")
    experts, params = (tuple(column) for column in zip(*potentials))
    if len({e.species for e in experts}) > 1:
        raise ValueError(
            f"potentials must share one species tuple, got {' and '.join(str(e.species) for e in experts)}."
        )
    for n, (expert, tree) in enumerate(zip(experts, params)):
        if jax.tree.structure(tree) != _structure_of(expert.init):
            raise ValueError(
                f"params must fit the experts, got {jax.tree.structure(tree)!s:.80} for expert {n}."
            )
    return experts, params


def _is_potential(value) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and isinstance(value[0], Expert)


def check_builder_arguments(region, dr_threshold, capacity_multiplier, chunk_size) -> None:
    """Raise `ValueError` where an argument of `mixture_neighbor_list` is out of range."""
    check_region(region)
    check_value("dr_threshold", dr_threshold, float)
    check_value("capacity_multiplier", capacity_multiplier, float)
    check_value("chunk_size", chunk_size, int)
    if capacity_multiplier < 1:
        raise ValueError(f"capacity_multiplier must be at least 1, got {capacity_multiplier}.")
    if not dr_threshold >= 0:
        raise ValueError(f"dr_threshold must not be negative (Å), got {dr_threshold}.")


def check_inner_potential(inner_potential, experts) -> None:
    """Raise `ValueError` where an inner potential does not fit itself or the experts."""
    if not _is_potential(inner_potential):
        raise ValueError(
            f"inner_potential must be an expert and its parameters, got {inner_potential!r:.80}."
        )
    expert, params = inner_potential
    if jax.tree.structure(params) != _structure_of(expert.init):
        raise ValueError(
            "inner_potential must have parameters that fit its expert, "
            f"got {jax.tree.structure(params)!s:.80}."
        )
    if expert.num_hops > 1 or expert.species != experts[0].species:
        raise ValueError(
            f"inner_potential must be an expert of the species {experts[0].species} that passes no messages, "
            f"got {expert.species} and num_hops {expert.num_hops}."
        )


def checked_species(
    experts: Sequence[Expert], species: Integer[ArrayLike, " atoms"] | Sequence[int]
) -> Int[Array, " atoms"]:
    """Species of atoms; `ValueError` unless they index the experts' species."""
    try:
        values = np.asarray(species)
    except ValueError:  # rows of unequal length
        values = np.asarray(None)
    if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer):
        raise ValueError(
            "species must be a vector of integers, one per atom, "
            f"got shape {values.shape} and dtype {values.dtype}."
        )
    known = len(experts[0].species)
    if values.size and not (values.min() >= 0 and values.max() < known):
        raise ValueError(
            f"species must index {experts[0].species}, 0 to {known - 1}, "
            f"got {values.min()} to {values.max()}."
        )
    return jnp.asarray(values, jnp.int32)


def check_box(box: lists.Box, cutoff: float) -> None:
    """Raise `ValueError` where a box (Å) has a wrong shape or is too narrow for a cutoff (Å)."""
    try:
        edges = np.asarray(box)
    except ValueError:  # rows of unequal length
        edges = np.asarray(None)
    shaped = edges.dtype.kind in "iuf" and edges.shape in ((), (3,), (3, 3))
    if not shaped or not (np.abs(edges) <= MAX_EDGE).all():
        raise ValueError(
            f"box must be a number, 3 edges or 3 x 3 columns, within {MAX_EDGE} Å, got {box!r:.80}."
        )
    if edges.ndim == 2 and abs(np.linalg.det(edges)) < 1e-6 * np.prod(np.linalg.norm(edges, axis=0)):
        raise ValueError(f"box must have independent columns, got {box!r:.80}.")
    if not (edges != 0).any() or (edges.ndim < 2 and not (edges > 0).all()):
        raise ValueError(f"box must have positive edges, got {box!r:.80}.")
    widths = lists.perpendicular_widths(edges)
    if not (widths > 2 * cutoff).all():
        raise ValueError(
            f"box must be wider than twice the cutoff, 2 x {cutoff} Å, "
            "in every direction for molecular dynamics, "
            f"got widths {np.round(widths, 3).tolist()} Å: repeat the cell."
        )


def check_displacement(displacement_fn: Callable, box: lists.Box, fractional_coordinates: bool) -> None:
    """Raise `ValueError` where a displacement function does not wrap by a box (Å).

    A lattice vector must be no displacement, and nearly half of one itself or an image of it.
    """
    columns = np.asarray(lists.box_matrix(box), float)
    vectors = np.eye(3) if fractional_coordinates else columns.T  # in the coordinates of the positions
    points = jnp.asarray(np.concatenate([vectors, NEAR_HALF * vectors]), float)
    with jax.ensure_compile_time_eval():
        found = jax.vmap(displacement_fn)(points, jnp.zeros_like(points))
    if isinstance(found, Tracer):  # of a box that is traced
        return
    expected = np.concatenate([np.zeros((3, 3)), NEAR_HALF * columns.T])  # [6, 3] Å
    difference = np.linalg.solve(columns, (np.asarray(found, float) - expected).T).T
    difference[3:] -= np.rint(difference[3:])
    wrong = ~(np.abs(difference) < SAME_FRACTION).all(axis=1)
    if wrong.any():
        first = int(np.argmax(wrong))
        share = "" if first < 3 else f"{NEAR_HALF} of "
        raise ValueError(
            f"displacement_fn must wrap by box, but {share}its vector {_text(columns[:, first % 3])} Å "
            f"becomes {_text(found[first])} Å, not {_text(expected[first])} Å: make it from this box, in "
            f"{'fractional' if fractional_coordinates else 'real'} coordinates, as "
            f"fractional_coordinates = {fractional_coordinates} says."
        )


def check_shift(
    shift_fn: Callable, box: lists.Box, fractional_coordinates: bool, box_arguments: dict
) -> None:
    """Raise `ValueError` where a shift function moves atoms that leave a box (Å) by anything but its vectors.

    Args:
        shift_fn: of an integrator or a relaxation.
        box: of the mixture, or of the state.
        fractional_coordinates: whether positions are fractions of the box.
        box_arguments: keyword arguments of `shift_fn`.
    """
    columns = np.asarray(lists.box_matrix(box), float)
    start = 0.1 * (np.eye(3) if fractional_coordinates else columns.T)
    with jax.ensure_compile_time_eval():
        end = shift_fn(jnp.asarray(start, float), jnp.asarray(-0.2 * columns.T, float), **box_arguments)
    if isinstance(end, Tracer):
        return
    end = np.asarray(end, float)
    fraction = end if fractional_coordinates else np.linalg.solve(columns, end.T).T
    difference = fraction + 0.1 * np.eye(3)
    if not (np.abs(difference - np.rint(difference)) < SAME_FRACTION).all():
        raise ValueError(
            f"shift_fn must wrap by the box of the energy, {_text(columns)} Å (columns), but atoms that "
            f"leave it move by {_text(difference)} of its vectors: make both from one box."
        )


def _text(values) -> str:
    return str(np.round(np.asarray(values, float), 4).tolist())


def check_position(position: Real[ArrayLike, "atoms 3"] | Sequence, n_atoms: int) -> None:
    """Raise `ValueError` unless positions are finite and of shape `[n_atoms, 3]`."""
    if np.shape(position) != (n_atoms, 3):
        raise ValueError(f"position must have shape [{n_atoms}, 3], got {np.shape(position)}.")
    if not np.isfinite(np.asarray(position)).all():
        raise ValueError("position must be finite, got NaN or infinity.")


def check_requested(requests, requested) -> None:
    """Raise `ValueError` where neighbours were allocated for a region of another form."""
    wanted = [_n_seeds(request) for request in flat_requests(requests)]
    found = [_n_seeds(answer) for answer in _flat_answers(requested)]
    if wanted != found:
        n_wanted, n_found = (f"[{', '.join(each)}]" for each in (wanted, found))
        raise ValueError(
            f"neighbors must be allocated for the region that is used, got lists around {n_found} seeds "
            f"for a region of {n_wanted} seeds: use allocate(position, region=region)."
        )


def _n_seeds(each) -> str:
    """Number of centres of a request or of its answer; of a `SupportRequest` they change."""
    changing = isinstance(each, (SupportRequest, SupportNeighbors))
    return "changing" if changing else str(len(each.centers))


def _flat_answers(requested) -> list[lists.NeighborList | SupportNeighbors]:
    """What answers `flat_requests`, in the same order."""
    found, kinds = [], (lists.NeighborList, SupportNeighbors)
    for answer in jax.tree.leaves(requested, is_leaf=lambda x: isinstance(x, kinds)):
        found += [*_flat_answers(getattr(answer, "requested", None)), answer]
    return found


def check_seeds(seeds: Int[Array | np.ndarray, " n"], n_atoms: int) -> None:
    """Raise `ValueError` where a seed is no atom."""
    if not (np.asarray(seeds) < n_atoms).all():
        raise ValueError(f"seeds must be atoms, 0 to {n_atoms - 1}, got {int(np.max(seeds))}.")


def warn_of_wide_requests(radius: float, width: float) -> None:
    """Warn where a sphere of this radius (Å) overlaps its image in a box of this width (Å)."""
    if 2 * radius > width:
        warnings.warn(
            f"region follows atoms in spheres of {radius:.2f} Å, wider than half the box, {width / 2:.2f} Å: "
            "the gates of atoms midway between two images of a sphere have a kink, "
            "and the energy is conserved less well. Repeat the cell.",
            stacklevel=3,
        )


def check_support(support: Bool[np.ndarray, "atoms experts"], n_atoms: int, n_experts: int) -> None:
    """Raise `ValueError` where a region has a wrong shape or leaves an atom without an expert."""
    if support.shape != (n_atoms, n_experts):
        raise ValueError(
            f"region must have gates of shape [n_atoms, n_experts] = [{n_atoms}, {n_experts}], "
            f"got {list(support.shape)}."
        )
    if not support.any(axis=1).all():
        raise ValueError(
            "region must give every atom to some expert, "
            f"got none for {int(np.sum(~support.any(axis=1)))} of {n_atoms} atoms."
        )
