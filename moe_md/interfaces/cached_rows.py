"""Rows that last while atoms move little, in cells of any shape.

They are listed on the host with a skin, `dr_threshold`, and hold neighbours and
their images instead of displacements: D_ik = R_k - R_i + S_ik cell, so that new
positions and a new cell give new rows on the device. Let F map the old cell to
the new and u = R' - R F be what atoms moved besides. A pair within the cutoff
now was no further apart than (cutoff + 2 max|u|) / s_min(F), s_min the least
singular value, or one if that is less: while that is within cutoff + skin, no pair
is missed, and none within a shorter cutoff with the same skin.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from ase.geometry import complete_cell
from jax import Array

from moe_md import derivatives
from moe_md.experts.base import Expert, chunked_atom_energies
from moe_md.experts.domain import allows_every_species, in_domain
from moe_md.neighbors.rows import Neighborhood, closer, compact_neighbors, rows_from_images

ROOM = 1.1  # slots for neighbours within a cutoff, over those of now


class CachedRows(NamedTuple):
    """Rows of one expert, those of its own atoms and, where it passes messages, those of their halo."""

    centers: Array  # [n] int, `n_atoms` or more where none
    own: Array  # [n] bool, no row of the halo
    neighbor: Array  # [n, K] int, atoms
    image: Array  # [n, K, 3] periods between the neighbour and its image, along the lattice vectors
    mask: Array  # [n, K] bool
    center_species: Array  # [n] int
    neighbor_species: Array  # [n, K] int


class When(NamedTuple):
    """Where the atoms were when rows were listed."""

    position: np.ndarray  # [n_atoms, 3] Å
    cell: np.ndarray  # [3, 3] Å, lattice vectors as rows
    pbc: np.ndarray  # [3] bool
    species: np.ndarray  # [n_atoms] int


def when(atoms, species: np.ndarray) -> When:
    """Where ASE's atoms are now."""
    return When(atoms.positions.copy(), complete_cell(atoms.cell.array), atoms.pbc.copy(), species)


def needs_rebuild(then: When, now: When, cutoff: float, skin: float) -> bool:
    """Whether rows listed then may lack a pair within `cutoff`, Å, now, or are those of other atoms.

    >>> then = When(np.zeros((1, 3)), np.eye(3), np.ones(3, bool), np.zeros(1, int))
    >>> [needs_rebuild(then, then._replace(cell=a * np.eye(3)), 4.0, 0.5) for a in (0.9, 0.8)]
    [False, True]
    """
    if not np.array_equal(then.species, now.species) or not np.array_equal(then.pbc, now.pbc):
        return True
    if not np.isfinite(now.position).all():
        return True  # and listing says so
    moved, least = now.position - then.position, 1.0
    if not np.array_equal(then.cell, now.cell):
        F = np.linalg.solve(then.cell, now.cell)
        moved, least = now.position - then.position @ F, min(1.0, np.linalg.svd(F, compute_uv=False).min())
    furthest = np.sqrt(np.einsum("ia,ia->i", moved, moved).max(initial=0.0))
    return bool(cutoff + 2.0 * furthest > least * (cutoff + skin))


def hold(
    at: When, pairs, cutoff: float, own: np.ndarray, halo: np.ndarray, dtype, like: CachedRows | None
) -> CachedRows:
    """Rows of the atoms `own` and `halo` up to `cutoff`, skin included, at sizes that others may share.

    Args:
        at: where the atoms are.
        pairs: of `image_pairs`, up to `cutoff`.
        cutoff: Å.
        own, halo: atoms, no atom in both.
        dtype: of `image`.
        like: rows held before; their sizes are kept where they fit.
    """
    centers = np.concatenate([own, halo]).astype(np.int32)
    rows = rows_from_images(at.position, at.species, at.cell, at.pbc, cutoff, centers=centers, pairs=pairs)
    n_atoms, (n, k) = len(at.position), rows.mask.shape
    straight = at.position[np.minimum(rows.neighbor, n_atoms - 1)] - at.position[centers][:, None]
    image = np.rint((rows.displacement - straight) @ np.linalg.inv(at.cell)) * rows.mask[..., None]
    before = (0, 0) if like is None else like.mask.shape
    nowhere = roomy(n_atoms)
    tall, wide = (
        kept(size, last) - need for need, size, last in zip((n, k), (roomy(n), 8 * -(-k // 8)), before)
    )
    flat, square = (0, tall), ((0, tall), (0, wide))
    return CachedRows(
        centers=jnp.asarray(np.pad(centers, flat, constant_values=nowhere)),
        own=jnp.asarray(np.pad(np.arange(n) < len(own), flat)),
        neighbor=jnp.asarray(
            np.pad(
                np.where(rows.mask, rows.neighbor, nowhere).astype(np.int32), square, constant_values=nowhere
            )
        ),
        image=jnp.asarray(np.pad(image.astype(dtype), (*square, (0, 0)))),
        mask=jnp.asarray(np.pad(rows.mask, square)),
        center_species=jnp.asarray(np.pad(rows.center_species, flat)),
        neighbor_species=jnp.asarray(np.pad(rows.neighbor_species, square)),
    )


def n_out_of_domain(expert: Expert, centers: np.ndarray, at: When, pairs) -> int:
    """Number of some atoms that are outside the expert's domain.

    Args:
        expert: the potential.
        centers: `[n]` int, atoms.
        at: where the atoms are.
        pairs: of `image_pairs`, up to the expert's cutoff or further.
    """
    if allows_every_species(expert):
        return 0
    rows = rows_from_images(
        at.position,
        at.species,
        at.cell,
        at.pbc,
        expert.cutoff,
        centers=centers,
        pairs=closer(pairs, expert.cutoff),
    )
    return int(np.sum(~np.asarray(in_domain(expert, rows))))


def roomy(n: int) -> int:
    """The next size of 1, 2, 3, 4, 6, 8, 12, 16, 24, ...: at most half as much again."""
    power = 1 << max(n - 1, 0).bit_length()
    return power * 3 // 4 if power >= 4 and power * 3 // 4 >= n else power


def kept(needed: int, last: int) -> int:
    """The last size where it will do and is not half as much again too large.

    So what is compiled is used again.
    """
    return last if needed <= last <= 1.5 * needed else needed


class Computed(NamedTuple):
    """What one expert adds; `[n_atoms]` padded to a roomy size."""

    energies: Array  # [n_atoms] eV, unweighted, of its own atoms
    forces: Array  # [n_atoms, 3] eV/Å
    virials: Array  # [n_atoms, 3, 3] eV
    fullest: Array  # int, neighbours within the cutoff of the fullest row, 0 where slots are not packed


def evaluator(expert: Expert, chunk_size: int) -> Callable:
    """A jitted `(params, rows, position, cell, weight, max_neighbors) -> Computed`.

    `position` is `[n_atoms, 3]` Å and `weight` `[n_atoms]`, both padded to a roomy
    size, `cell` `[3, 3]` Å. Where a slot of the expert is dear, rows are packed
    into `max_neighbors`: with `fullest` above that, the result is wrong. One and the
    same expert gets one and the same function: calculators of a band's images
    share what is compiled.
    """
    bare = cast(Any, expert)._replace(config=())  # a dict has no hash
    return _evaluator(bare, chunk_size)


@lru_cache(maxsize=64)
def _evaluator(expert: Expert, chunk_size: int) -> Callable:
    atom_energies = chunked_atom_energies(expert, chunk_size)

    def evaluate(params, held: CachedRows, position, cell, weight, max_neighbors: int | None) -> Computed:
        n_atoms = position.shape[0]
        weights = jnp.where(held.own, weight.at[held.centers].get(mode="fill", fill_value=0.0), 0.0)
        wanted = {}
        if expert.num_hops == 1:
            # Rows that matter come first; chunks of the others cost nothing.
            order = jnp.argsort(weights <= 0)
            held, weights = jax.tree.map(lambda x: x[order], held), weights[order]
            wanted = {"wanted": jnp.sum(weights > 0)}
        rows = _rows(held, position, cell)
        fullest = jnp.zeros((), jnp.int32)
        if max_neighbors is not None:
            rows, fullest = _packed(rows, expert.cutoff, max_neighbors, n_atoms)
        seen = rows
        if expert.num_hops > 1:
            n_rows = held.centers.shape[0]
            row_of = (
                jnp.full(n_atoms + 1, n_rows).at[held.centers].set(jnp.arange(n_rows)).at[n_atoms].set(n_rows)
            )
            seen = rows._replace(neighbor=row_of[rows.neighbor])

        def total(displacement):
            energies = atom_energies(params, seen._replace(displacement=displacement), **wanted)
            energies = jnp.where(weights > 0, energies, 0.0)
            return jnp.sum(weights * energies), energies

        g, energies = jax.grad(total, has_aux=True)(rows.displacement)
        virials = derivatives.virial(g, rows)
        own = jnp.where(held.own, held.centers, n_atoms)
        return Computed(
            energies=jnp.zeros(n_atoms, position.dtype).at[own].set(energies, mode="drop"),
            forces=derivatives.forces(g, rows, held.centers, n_atoms),
            virials=jnp.zeros((n_atoms, 3, 3), position.dtype).at[held.centers].set(virials, mode="drop"),
            fullest=fullest,
        )

    return jax.jit(evaluate, static_argnums=5)


def slots_for(expert: Expert, pairs, own: np.ndarray, last: int | None) -> int | None:
    """Slots that packed rows of these atoms want, of `pairs` up to the expert's cutoff.

    None where they are not packed.
    """
    if not expert.pack_neighbors or expert.num_hops > 1:
        return None
    most = np.bincount(pairs[0], minlength=own.max(initial=0) + 1)[own].max(initial=1)
    return kept(int(np.ceil(ROOM * most)), last or 0)


def _rows(held: CachedRows, position: Array, cell: Array) -> Neighborhood:
    to = position.at[held.neighbor].get(mode="fill", fill_value=0.0)
    at = position.at[held.centers].get(mode="fill", fill_value=0.0)
    displacement = to - at[:, None] + held.image @ cell
    return Neighborhood(
        displacement=jnp.where(held.mask[..., None], displacement, 1.0),
        mask=held.mask,
        center_species=held.center_species,
        neighbor_species=held.neighbor_species,
        neighbor=held.neighbor,
    )


def _packed(
    rows: Neighborhood, cutoff: float, max_neighbors: int, nowhere: int
) -> tuple[Neighborhood, Array]:
    """Rows of the neighbours within a cutoff only, and how many the fullest has."""
    k = rows.mask.shape[1]
    near = rows.mask & (jnp.sum(rows.displacement**2, axis=-1) < cutoff**2)
    slots = jnp.broadcast_to(jnp.arange(k, dtype=jnp.int32), near.shape)
    slot, fullest = compact_neighbors(slots, near, max_neighbors, k)
    mask = slot < k
    safe = jnp.minimum(slot, k - 1)
    return (
        Neighborhood(
            displacement=jnp.where(
                mask[..., None], jnp.take_along_axis(rows.displacement, safe[..., None], axis=1), 1.0
            ),
            mask=mask,
            center_species=rows.center_species,
            neighbor_species=jnp.where(mask, jnp.take_along_axis(rows.neighbor_species, safe, axis=1), 0),
            neighbor=jnp.where(mask, jnp.take_along_axis(rows.neighbor, safe, axis=1), nowhere),
        ),
        fullest,
    )
