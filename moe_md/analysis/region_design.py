"""Regions against stored frames: error and cost as differentiable functions of a region.

What experts make of a frame does not depend on who owns what: energies E_ie and partial
forces g_ie of every atom i under each of two experts e are computed once. The
forces of any mixture of them are then

    F_k = -sum_ie w_ie dE_ie/dR_k - sum_ie E_ie dw_ie/dR_k,

no network involved, so that radii and widths of a region can be optimised by gradients in
seconds.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from moe_md import derivatives
from moe_md.checks import check_positive
from moe_md.data.batching import frame_rows
from moe_md.data.reading import Frame
from moe_md.experts.base import Expert, Params, energies_and_partial_forces
from moe_md.neighbors.rows import Neighborhood, map_rows
from moe_md.regions import Region

CHUNK = 64  # rows computed at a time


class StoredFrames(NamedTuple):
    """Frames of the same atoms under two experts, each as if it owned all of them."""

    position: Array  # [n_frames, n_atoms, 3] Å
    energy: Array  # [n_frames, n_atoms, 2] eV
    partial_force: Array  # [n_frames, 2, n_atoms, K, 3] eV/Å
    neighbor: Array  # [n_frames, n_atoms, K] int, n_atoms where none
    force: Array  # [n_frames, n_atoms, 3] eV/Å, all atoms on expert 0


def stored_frames(
    experts: Sequence[Expert], params: Sequence[Params], frames: Sequence[Frame]
) -> StoredFrames:
    """Evaluate two experts on frames, once.

    Args:
        experts: two, the expensive one first; neither passes messages.
        params: of each.
        frames: of the same number of atoms, in the same order.

    Returns:
        Energies, partial forces and what they belong to. In the dtype jax runs in.

    Raises:
        ValueError: not two experts, one passes messages, or frames differ in their atoms.
    """
    if len(experts) != 2 or any(e.num_hops > 1 for e in experts):
        raise ValueError(f"experts must be two that pass no messages, got {len(experts)}.")
    if len(frames) == 0 or any(tuple(f.symbols) != tuple(frames[0].symbols) for f in frames):
        raise ValueError("frames must hold the same atoms in the same order, at least one frame.")
    cutoff, dtype = max(e.cutoff for e in experts), jnp.zeros(()).dtype
    all_rows = [frame_rows(frame, experts[0].species, cutoff, dtype=dtype) for frame in frames]
    slots, n_atoms = max(rows.mask.shape[1] for rows in all_rows), len(frames[0].symbols)
    energies, partials, neighbors = [], [], []
    compute = [jax.jit(partial(_on_rows, expert)) for expert in experts]
    for rows in all_rows:
        rows = _with_slots(rows, slots)
        each = [fn(tree, rows) for fn, tree in zip(compute, params, strict=True)]
        energies.append(jnp.stack([energy for energy, _ in each], axis=1))
        partials.append(jnp.stack([g for _, g in each]))
        neighbors.append(jnp.where(rows.mask, rows.neighbor, n_atoms))
    position = jnp.asarray(np.stack([frame.positions for frame in frames]), dtype)
    stored = StoredFrames(
        position, jnp.stack(energies), jnp.stack(partials), jnp.stack(neighbors), jnp.zeros_like(position)
    )
    alone = jnp.zeros((n_atoms, 2), dtype).at[:, 0].set(1.0)
    force = jnp.stack(
        [_pulls(alone, stored.partial_force[f], stored.neighbor[f]) for f in range(len(frames))]
    )
    return stored._replace(force=force)


def mixed_forces(stored: StoredFrames, displacement_fn: Callable, region: Region) -> Array:
    """Forces of the mixture, the slope of the gate included: `[n_frames, n_atoms, 3]` eV/Å.

    They are differentiable in the region.

    Args:
        stored: from `stored_frames`.
        displacement_fn: from `jax_md.space`, of the frames' box.
        region: of two experts, one that needs no lists (`around`, `custom`, static ones).
    """

    def of_one(R, energy, g, neighbor):
        weight = region.gate(R, displacement_fn)
        slope = jax.grad(lambda R: jnp.sum(energy * region.gate(R, displacement_fn)))(R)
        return _pulls(weight, g, neighbor) - slope

    return jax.lax.map(
        lambda x: of_one(*x), (stored.position, stored.energy, stored.partial_force, stored.neighbor)
    )


def force_error(stored: StoredFrames, displacement_fn: Callable, region: Region) -> Array:
    """Root mean square of the components of the mixture's forces, less those of expert 0 alone: eV/Å."""
    return jnp.sqrt(jnp.mean((mixed_forces(stored, displacement_fn, region) - stored.force) ** 2))


def expected_cost(
    stored: StoredFrames,
    displacement_fn: Callable,
    region: Region,
    *,
    ratio: float,
    least_weight: float = 1e-3,
) -> Array:
    """What a step costs, over that of expert 0 alone: sum_e of atoms with weight on e, times their cost.

    An atom costs what it costs as soon as it has any weight. Instead of that step,
    whose slope is zero or infinite, w / (w + `least_weight`): half an atom at that weight.

    Args:
        stored, displacement_fn, region: as in `mixed_forces`.
        ratio: cost of an atom on expert 0 over one on expert 1, above 1.
        least_weight: positive; with 0 in the limit it is `centres`.

    Returns:
        A number from 1/ratio to 1 + 1/ratio; one over it is the bound of the speed-up.
    """
    check_positive("ratio", ratio)
    check_positive("least_weight", least_weight)

    def of_one(R):
        weight = jnp.maximum(region.gate(R, displacement_fn), 0.0)
        return jnp.mean(weight / (weight + least_weight), axis=0) @ jnp.array(
            [1.0, 1.0 / ratio], weight.dtype
        )

    return jnp.mean(jax.lax.map(of_one, stored.position))


def centres(stored: StoredFrames, displacement_fn: Callable, region: Region) -> Array:
    """`[2]`, the mean share of atoms with weight on each expert: no slope."""
    return jnp.mean(
        jax.lax.map(lambda R: jnp.mean(region.gate(R, displacement_fn) > 0, axis=0), stored.position), axis=0
    )


def _on_rows(expert: Expert, params: Params, rows: Neighborhood) -> tuple[Array, Array]:
    return map_rows(lambda chunk: energies_and_partial_forces(expert, params, chunk), rows, CHUNK)


def _pulls(weight: Array, g: Array, neighbor: Array) -> Array:
    """Forces of weighted rows."""
    n_atoms = neighbor.shape[0]
    mixed = jnp.einsum("ne,enka->nka", weight, g)
    mask = neighbor < n_atoms
    nothing = jnp.zeros(neighbor.shape, jnp.int32)
    rows = Neighborhood(mixed, mask, nothing[:, 0], nothing, neighbor)
    return derivatives.forces(mixed, rows, jnp.arange(n_atoms), n_atoms)


def _with_slots(rows: Neighborhood, slots: int) -> Neighborhood:
    n, room = rows.mask.shape[0], slots - rows.mask.shape[1]
    pad = [(0, 0), (0, room)]
    return Neighborhood(
        jnp.asarray(np.pad(rows.displacement, [*pad, (0, 0)], constant_values=1.0)),
        jnp.asarray(np.pad(rows.mask, pad)),
        jnp.asarray(rows.center_species),
        jnp.asarray(np.pad(rows.neighbor_species, pad)),
        jnp.asarray(np.pad(rows.neighbor, pad, constant_values=n)),
    )
