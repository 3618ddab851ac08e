"""Rows of centres that are reused over many steps, in cells of any shape.

Rows are built on the host with a skin, `dr_threshold`. They store the neighbours
and their periodic images instead of displacements, D_ik = R_k - R_i + S_ik cell,
so that the device computes displacements from new positions and a new cell.

When to rebuild: let F map the old cell to the new one, and let u = R' - R F be the
displacements that the change of cell does not explain. A pair that is within the
cutoff now was within (cutoff + 2 max|u|) / s_min(F) then, with s_min the smallest
singular value of F, or one if that is less. While this is at most cutoff + skin, no
pair is missing. With the same skin, none is missing for any shorter cutoff either.
"""

import os
from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from ase.geometry import complete_cell
from jax import Array
from jaxtyping import Bool, Float, Int

from moe_md import derivatives, memory
from moe_md.compiler import fast_jit
from moe_md.experts.base import Expert, Params
from moe_md.experts.chunks import chunked_atom_energies
from moe_md.experts.domain import has_every_row, in_domain, warn_out_of_domain
from moe_md.neighbors.capacity import bucket_size
from moe_md.neighbors.rows import Neighborhood, closer, compact_neighbors, rows_from_images

DOMAIN_CHECK_EVERY = 20  # builds of the rows
NEIGHBOR_CAPACITY_FACTOR = 1.1  # capacity of packed rows over the present number of neighbours

# Centre, neighbour and displacement (Å) of each pair, from `image_pairs`.
Pairs = tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"], Float[np.ndarray, "pairs 3"]]


class CachedRows(NamedTuple):
    """Rows of one expert: those of its own atoms and, where it passes messages, those of their halo."""

    centers: Int[Array, " n"]  # atoms; `n_atoms` or more on padded rows
    own: Bool[Array, " n"]  # False for rows of the halo and padded rows
    neighbor: Int[Array, "n K"]  # atoms
    image: Float[Array, "n K 3"]  # lattice vectors from the neighbour to its image
    mask: Bool[Array, "n K"]
    center_species: Int[Array, " n"]
    neighbor_species: Int[Array, "n K"]


class ReferenceGeometry(NamedTuple):
    """Positions and cell at which rows were built."""

    position: Float[np.ndarray, "atoms 3"]  # Å
    cell: Float[np.ndarray, "3 3"]  # Å, lattice vectors as rows
    pbc: Bool[np.ndarray, "3"]
    species: Int[np.ndarray, " atoms"]


_computed_in: list[int] = []  # the process in which jax has first computed for a calculator


def check_process() -> None:
    """Raise `RuntimeError` in a process that was forked after jax had computed: it would wait forever."""
    if not _computed_in:
        _computed_in.append(os.getpid())
    if _computed_in[0] != os.getpid():
        raise RuntimeError(
            f"processes must be spawned after a calculator has computed, got one forked from "
            f"{_computed_in[0]}: "
            'use multiprocessing.get_context("spawn"), or compute in the forked processes only.'
        )


def reference_geometry(atoms: Atoms, species: Int[np.ndarray, " atoms"]) -> ReferenceGeometry:
    """A copy of the positions and the cell of ASE's atoms; missing lattice vectors are completed."""
    return ReferenceGeometry(
        atoms.positions.copy(), complete_cell(atoms.cell.array), atoms.pbc.copy(), species
    )


def lattice_offsets(geometry: ReferenceGeometry) -> Float[np.ndarray, "atoms 3"]:
    """For each atom the lattice vectors to subtract, so that positions are near the origin, and each other.

    float32 resolves 0.0005 Å at 5,000 Å. Whole lattice vectors along periodic
    directions bring atoms to their images nearest to the first atom; the rest, the
    same for all atoms, is the mean.
    """
    fraction = np.linalg.solve(geometry.cell.T, geometry.position.T).T
    if not np.isfinite(fraction).all():
        return np.zeros_like(fraction)  # building the rows raises the error
    whole = np.where(geometry.pbc, np.rint(fraction - fraction[:1]), 0.0)
    return whole + np.mean(fraction - whole, axis=0)


def near_origin(geometry: ReferenceGeometry, offsets: Float[np.ndarray, "atoms 3"]) -> ReferenceGeometry:
    """The geometry less `lattice_offsets`, in float64; the offsets follow a change of the cell.

    >>> far = ReferenceGeometry(np.full((1, 3), 5000.1), np.eye(3), np.ones(3, bool), np.zeros(1, int))
    >>> near_origin(far, lattice_offsets(far)).position.tolist()
    [[0.0, 0.0, 0.0]]
    """
    return geometry._replace(position=geometry.position - offsets @ geometry.cell)


def needs_rebuild(
    reference: ReferenceGeometry, current: ReferenceGeometry, cutoff: float, skin: float
) -> bool:
    """Whether rows built at `reference` may lack a pair that is within `cutoff`, Å, at `current`.

    Also True where species, periodicity or the number of atoms differ.

    >>> reference = ReferenceGeometry(np.zeros((1, 3)), np.eye(3), np.ones(3, bool), np.zeros(1, int))
    >>> scaled = [reference._replace(cell=a * np.eye(3)) for a in (0.9, 0.8)]
    >>> [needs_rebuild(reference, current, 4.0, 0.5) for current in scaled]
    [False, True]
    """
    if not np.array_equal(reference.species, current.species):
        return True
    if not np.array_equal(reference.pbc, current.pbc):
        return True
    if not np.isfinite(current.position).all():
        return True  # building the rows raises the error
    moved, least = current.position - reference.position, 1.0
    if not np.array_equal(reference.cell, current.cell):
        F = np.linalg.solve(reference.cell, current.cell)
        moved = current.position - reference.position @ F
        least = min(1.0, np.linalg.svd(F, compute_uv=False).min())
    furthest = np.sqrt(np.einsum("ia,ia->i", moved, moved).max(initial=0.0))
    return bool(cutoff + 2.0 * furthest > least * (cutoff + skin))


def build(
    geometry: ReferenceGeometry,
    pairs: Pairs,
    cutoff: float,
    own: Int[np.ndarray, " own"],
    halo: Int[np.ndarray, " halo"],
    dtype,
    previous: CachedRows | None,
) -> CachedRows:
    """Rows of the atoms `own` and `halo`, padded to sizes that few programs serve.

    Args:
        geometry: positions, cell and species.
        pairs: from `image_pairs`, up to `cutoff`.
        cutoff: Å, with the skin.
        own, halo: atoms; no atom is in both.
        dtype: of `image`.
        previous: rows built before; their sizes are reused where they fit.
    """
    centers = np.concatenate([own, halo]).astype(np.int32)
    rows = rows_from_images(
        geometry.position, geometry.species, geometry.cell, geometry.pbc, cutoff, centers=centers, pairs=pairs
    )
    n_atoms, (n, k) = len(geometry.position), rows.mask.shape
    neighbor_position = geometry.position[np.minimum(rows.neighbor, n_atoms - 1)]
    without_image = neighbor_position - geometry.position[centers][:, None]
    image = np.rint((rows.displacement - without_image) @ np.linalg.inv(geometry.cell))
    image = image * rows.mask[..., None]
    padding = bucket_size(n_atoms)  # index of no atom
    previous_n, previous_k = (0, 0) if previous is None else previous.mask.shape
    more_rows = reuse_bucket(bucket_size(n), previous_n) - n
    more_neighbors = reuse_bucket(8 * -(-k // 8), previous_k) - k
    per_row, per_neighbor = (0, more_rows), ((0, more_rows), (0, more_neighbors))
    neighbor = np.where(rows.mask, rows.neighbor, padding).astype(np.int32)
    return CachedRows(
        centers=jnp.asarray(np.pad(centers, per_row, constant_values=padding)),
        own=jnp.asarray(np.pad(np.arange(n) < len(own), per_row)),
        neighbor=jnp.asarray(np.pad(neighbor, per_neighbor, constant_values=padding)),
        image=jnp.asarray(np.pad(image.astype(dtype), (*per_neighbor, (0, 0)))),
        mask=jnp.asarray(np.pad(rows.mask, per_neighbor)),
        center_species=jnp.asarray(np.pad(rows.center_species, per_row)),
        neighbor_species=jnp.asarray(np.pad(rows.neighbor_species, per_neighbor)),
    )


class DomainWarning:
    """Warns once of experts that compute atoms outside their domains, which costs as much as building rows.

    It looks at the first of every `DOMAIN_CHECK_EVERY` builds of the rows.
    """

    def __init__(self):
        self._n_builds, self._warned = 0, False

    def __call__(
        self,
        experts: Sequence[Expert],
        computed: Bool[np.ndarray, "atoms experts"],
        geometry: ReferenceGeometry,
        pairs: Pairs,
    ) -> None:
        """Look at the atoms with a gate above zero (`computed`); the skin does not count."""
        self._n_builds += 1
        if self._warned or (self._n_builds - 1) % DOMAIN_CHECK_EVERY:
            return
        counts = [
            _n_out_of_domain(e, np.flatnonzero(column), geometry, pairs)
            for e, column in zip(experts, computed.T)
        ]
        self._warned = not warn_out_of_domain(experts, np.array(counts), stacklevel=6)


def _n_out_of_domain(
    expert: Expert, centers: Int[np.ndarray, " n"], geometry: ReferenceGeometry, pairs: Pairs
) -> int:
    """Number of some atoms that are outside the expert's domain.

    Args:
        expert: the potential.
        centers: atoms.
        geometry: of all atoms.
        pairs: of `image_pairs`, up to the expert's cutoff or further.
    """
    if has_every_row(expert):
        return 0
    rows = rows_from_images(
        geometry.position,
        geometry.species,
        geometry.cell,
        geometry.pbc,
        expert.cutoff,
        centers=centers,
        pairs=closer(pairs, expert.cutoff),
    )
    return int(np.sum(~np.asarray(in_domain(expert, rows))))


def reuse_bucket(needed: int, previous: int) -> int:
    """The previous size where it is large enough and at most 1.5 times the needed one, else the needed one.

    A size that stays reuses the compiled program.
    """
    return previous if needed <= previous <= 1.5 * needed else needed


class Contribution(NamedTuple):
    """One expert's part of energies, forces and virials; `n_atoms` is padded to `bucket_size`."""

    energies: Float[Array, " atoms"]  # eV, of the expert's own atoms, before multiplication by the gate
    forces: Float[Array, "atoms 3"]  # eV/Å
    virials: Float[Array, "atoms 3 3"]  # eV
    max_occupancy: Int[Array, ""]  # most neighbours within the cutoff of any row; 0 where rows are not packed


def evaluator(expert: Expert, chunk_size: int) -> Callable:
    """A jitted `(params, rows, position, cell, gate, max_neighbors) -> Contribution`.

    `position` is `[n_atoms, 3]` Å and `gate` `[n_atoms]`, both padded to
    `bucket_size`; `cell` is `[3, 3]` Å. Rows of experts with `pack_neighbors` are
    packed into `max_neighbors` columns, which is static, and None for other
    experts. The result is wrong where `max_occupancy` exceeds it. Equal arguments
    share one compiled function, so the calculators of a band's images share programs.
    """
    hashable = cast(Any, expert)._replace(config=(), familiarity=None)
    compiled = _evaluator(hashable, chunk_size)

    @wraps(compiled)
    def evaluate(*arguments) -> Contribution:
        with memory.naming(memory.of_chunk_size(chunk_size)):
            return compiled(*arguments)

    return evaluate


@lru_cache(maxsize=64)
def _evaluator(expert: Expert, chunk_size: int) -> Callable:
    atom_energies = chunked_atom_energies(expert, chunk_size)

    def evaluate(
        params: Params,
        cached: CachedRows,
        position: Float[Array, "atoms 3"],
        cell: Float[Array, "3 3"],
        gate: Float[Array, " atoms"],
        max_neighbors: int | None,
    ) -> Contribution:
        n_atoms = position.shape[0]
        row_gate = jnp.where(cached.own, gate.at[cached.centers].get(mode="fill", fill_value=0.0), 0.0)
        wanted = {}
        if expert.num_hops == 1:
            # Rows with a gate above zero come first; chunks without any are skipped.
            order = jnp.argsort(row_gate <= 0)
            cached, row_gate = jax.tree.map(lambda x: x[order], cached), row_gate[order]
            wanted = {"wanted": jnp.sum(row_gate > 0)}
        rows = _neighborhood(cached, position, cell)
        max_occupancy = jnp.zeros((), jnp.int32)
        if max_neighbors is not None:
            rows, max_occupancy = _pack_within_cutoff(rows, expert.cutoff, max_neighbors, n_atoms)
        expert_rows = rows
        if expert.num_hops > 1:
            expert_rows = rows._replace(neighbor=_row_of_atom(cached.centers, n_atoms)[rows.neighbor])

        def total(displacement):
            energies = atom_energies(params, expert_rows._replace(displacement=displacement), **wanted)
            energies = jnp.where(row_gate > 0, energies, 0.0)
            return jnp.sum(row_gate * energies), energies

        g, energies = jax.grad(total, has_aux=True)(rows.displacement)
        virials = derivatives.virial(g, rows)
        own = jnp.where(cached.own, cached.centers, n_atoms)
        return Contribution(
            energies=jnp.zeros(n_atoms, position.dtype).at[own].set(energies, mode="drop"),
            forces=derivatives.forces(g, rows, cached.centers, n_atoms),
            virials=jnp.zeros((n_atoms, 3, 3), position.dtype).at[cached.centers].set(virials, mode="drop"),
            max_occupancy=max_occupancy,
        )

    return fast_jit(evaluate, static_argnums=5)


def max_neighbors_for(
    expert: Expert, pairs: Pairs, own: Int[np.ndarray, " own"], previous: int | None
) -> int | None:
    """Columns of the packed rows of some atoms; None where the expert's rows are not packed.

    Args:
        expert: rows are packed where it has `pack_neighbors` and passes no messages.
        pairs: from `image_pairs`, up to the expert's cutoff.
        own: atoms.
        previous: the number used before, reused where it fits.
    """
    if not expert.pack_neighbors or expert.num_hops > 1:
        return None
    most = np.bincount(pairs[0], minlength=own.max(initial=0) + 1)[own].max(initial=1)
    return reuse_bucket(int(np.ceil(NEIGHBOR_CAPACITY_FACTOR * most)), previous or 0)


def _neighborhood(cached: CachedRows, position: Array, cell: Array) -> Neighborhood:
    """Rows with displacements at these positions, `[n_atoms, 3]` Å, and this cell, `[3, 3]` Å."""
    neighbor_position = position.at[cached.neighbor].get(mode="fill", fill_value=0.0)
    center_position = position.at[cached.centers].get(mode="fill", fill_value=0.0)
    displacement = neighbor_position - center_position[:, None] + cached.image @ cell
    return Neighborhood(
        displacement=jnp.where(cached.mask[..., None], displacement, 1.0),
        mask=cached.mask,
        center_species=cached.center_species,
        neighbor_species=cached.neighbor_species,
        neighbor=cached.neighbor,
    )


def _row_of_atom(centers: Array, n_atoms: int) -> Array:
    """`[n_atoms + 1]` int, the row of each atom; the number of rows for atoms without one and for padding."""
    n_rows = centers.shape[0]
    return jnp.full(n_atoms + 1, n_rows).at[centers].set(jnp.arange(n_rows)).at[n_atoms].set(n_rows)


def _pack_within_cutoff(
    rows: Neighborhood, cutoff: float, max_neighbors: int, padding: int
) -> tuple[Neighborhood, Array]:
    """Rows of the neighbours within a cutoff, and the largest number of them in a row."""
    k = rows.mask.shape[1]
    within = rows.mask & (jnp.sum(rows.displacement**2, axis=-1) < cutoff**2)
    columns = jnp.broadcast_to(jnp.arange(k, dtype=jnp.int32), within.shape)
    column, max_occupancy = compact_neighbors(columns, within, max_neighbors, k)
    mask = column < k
    safe = jnp.minimum(column, k - 1)
    displacement = jnp.take_along_axis(rows.displacement, safe[..., None], axis=1)
    packed = Neighborhood(
        displacement=jnp.where(mask[..., None], displacement, 1.0),
        mask=mask,
        center_species=rows.center_species,
        neighbor_species=jnp.where(mask, jnp.take_along_axis(rows.neighbor_species, safe, axis=1), 0),
        neighbor=jnp.where(mask, jnp.take_along_axis(rows.neighbor, safe, axis=1), padding),
    )
    return packed, max_occupancy
