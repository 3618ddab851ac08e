"""Error and cost of a region on stored frames, as differentiable functions of the region.

The energies E_ie and partial forces g_ie of every atom i under each of two experts e
do not depend on the region, so they are computed once per frame. The forces of any
mixture are then

    F_k = -sum_ie w_ie dE_ie/dR_k - sum_ie E_ie dw_ie/dR_k

with the gates w_ie. No network is evaluated, so radii and widths of a region can be
optimised by gradients in seconds.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from moe_md import derivatives
from moe_md.checks import check_positive
from moe_md.data.batching import frame_rows
from moe_md.data.reading import Frame
from moe_md.experts.base import Expert, Params, check_two_experts
from moe_md.experts.chunks import energies_and_partial_forces
from moe_md.neighbors.rows import Neighborhood, map_rows
from moe_md.regions import Region
from moe_md.renamed import missing_attribute

CHUNK = 64  # rows computed at a time


class StoredFrames(NamedTuple):
    """Frames of the same atoms with energies and partial forces of two experts for all atoms."""

    position: Float[Array, "frames atoms 3"]  # Å
    energy: Float[Array, "frames atoms 2"]  # eV
    partial_force: Float[Array, "frames 2 atoms K 3"]  # eV/Å
    neighbor: Int[Array, "frames atoms K"]  # number of atoms where none
    force: Float[Array, "frames atoms 3"]  # eV/Å, all atoms on expert 0


def stored_frames(
    experts: Sequence[Expert],
    params: Sequence[Params],
    frames: Sequence[Frame],
    *,
    chunk_size: int = CHUNK,
) -> StoredFrames:
    """Evaluate two experts on all atoms of some frames.

    Args:
        experts: two, the expensive one first; neither passes messages.
        params: one parameter tree per expert.
        frames: of the same atoms in the same order.
        chunk_size: rows computed at a time.

    Returns:
        Energies, partial forces and neighbours, computed in the default float dtype.

    Raises:
        ValueError: there are not two experts, one passes messages, or frames differ in their atoms.
    """
    check_two_experts(experts, strictly_local=True)
    if len(frames) == 0 or any(tuple(f.symbols) != tuple(frames[0].symbols) for f in frames):
        raise ValueError("frames must hold the same atoms in the same order, at least one frame.")
    cutoff, dtype = max(e.cutoff for e in experts), jnp.zeros(()).dtype
    all_rows = [frame_rows(frame, experts[0].species, cutoff, dtype=dtype) for frame in frames]
    max_neighbors, n_atoms = max(rows.mask.shape[1] for rows in all_rows), len(frames[0].symbols)
    energies, partials, neighbors = [], [], []
    compute = [jax.jit(partial(_on_rows, expert, chunk_size)) for expert in experts]
    for rows in all_rows:
        rows = _padded(rows, max_neighbors)
        each = [fn(tree, rows) for fn, tree in zip(compute, params, strict=True)]
        energies.append(jnp.stack([energy for energy, _ in each], axis=1))
        partials.append(jnp.stack([g for _, g in each]))
        neighbors.append(jnp.where(rows.mask, rows.neighbor, n_atoms))
    position = jnp.asarray(np.stack([frame.positions for frame in frames]), dtype)
    stored = StoredFrames(
        position, jnp.stack(energies), jnp.stack(partials), jnp.stack(neighbors), jnp.zeros_like(position)
    )
    all_on_0 = jnp.zeros((n_atoms, 2), dtype).at[:, 0].set(1.0)
    force = jnp.stack(
        [gated_forces(all_on_0, stored.partial_force[f], stored.neighbor[f]) for f in range(len(frames))]
    )
    return stored._replace(force=force)


def mixed_forces(
    stored: StoredFrames, displacement_fn: Callable, region: Region
) -> Float[Array, "frames atoms 3"]:
    """Forces of the mixture, gate-gradient forces included: eV/Å.

    They are differentiable in the region.

    Args:
        stored: from `stored_frames`.
        displacement_fn: from `jax_md.space`, of the frames' box.
        region: of two experts, one that needs no lists (`around`, `custom`, static ones);
            `region_scan.forces` takes any.
    """

    def frame_forces(R, energy, g, neighbor):
        gate = region.gate(R, displacement_fn)
        gate_gradient = jax.grad(lambda R: jnp.sum(energy * region.gate(R, displacement_fn)))(R)
        return gated_forces(gate, g, neighbor) - gate_gradient

    return jax.lax.map(
        lambda x: frame_forces(*x), (stored.position, stored.energy, stored.partial_force, stored.neighbor)
    )


def gated_forces(
    gate: Float[Array | np.ndarray, "atoms 2"],
    partial_force: Float[Array, "2 atoms K 3"],
    neighbor: Int[Array, "atoms K"],
) -> Float[Array, "atoms 3"]:
    """Forces of one frame at constant gates, without the gate-gradient forces: eV/Å.

    Args:
        gate: share of each atom's energy that each expert supplies.
        partial_force: of the frame, from `stored_frames`, eV/Å.
        neighbor: of the frame; the number of atoms where there is none.
    """
    n_atoms = neighbor.shape[0]
    mixed = jnp.einsum("ne,enka->nka", gate, partial_force)
    no_species = jnp.zeros(neighbor.shape, jnp.int32)
    rows = Neighborhood(mixed, neighbor < n_atoms, no_species[:, 0], no_species, neighbor)
    return derivatives.forces(mixed, rows, jnp.arange(n_atoms), n_atoms)


def force_error(stored: StoredFrames, displacement_fn: Callable, region: Region) -> Float[Array, ""]:
    """Root mean square difference, over components, of the mixture's forces and expert 0's: eV/Å."""
    return jnp.sqrt(jnp.mean((mixed_forces(stored, displacement_fn, region) - stored.force) ** 2))


def expected_cost(
    stored: StoredFrames,
    displacement_fn: Callable,
    region: Region,
    *,
    ratio: float,
    half_cost_gate: float = 1e-3,
) -> Float[Array, ""]:
    """Cost of a step relative to all atoms on expert 0: sum over experts of active atoms times cost per atom.

    An expert computes an atom as soon as its gate w is above zero. The derivative of this
    step function is zero or infinite, so it is replaced by w / (w + `half_cost_gate`).

    Args:
        stored, displacement_fn, region: as in `mixed_forces`.
        ratio: cost of an atom on expert 0 over its cost on expert 1, above 1.
        half_cost_gate: gate at which an atom counts as half an atom, positive; towards zero the
            result becomes exact, see `center_shares`.

    Returns:
        A number from 1/ratio to 1 + 1/ratio; its inverse is the bound of the speed-up.

    Raises:
        ValueError: `ratio` or `half_cost_gate` is not positive.
    """
    check_positive("ratio", ratio)
    check_positive("half_cost_gate", half_cost_gate)

    def frame_cost(R):
        gate = jnp.maximum(region.gate(R, displacement_fn), 0.0)
        return jnp.mean(gate / (gate + half_cost_gate), axis=0) @ jnp.array([1.0, 1.0 / ratio], gate.dtype)

    return jnp.mean(jax.lax.map(frame_cost, stored.position))


def center_shares(stored: StoredFrames, displacement_fn: Callable, region: Region) -> Float[Array, "2"]:
    """Share of atoms whose gate is above zero on each expert, averaged over frames; no gradient."""
    return jnp.mean(
        jax.lax.map(lambda R: jnp.mean(region.gate(R, displacement_fn) > 0, axis=0), stored.position), axis=0
    )


def _on_rows(expert: Expert, chunk_size: int, params: Params, rows: Neighborhood) -> tuple[Array, Array]:
    """Energies `[n]` and partial forces `[n, K, 3]`, computed in chunks."""
    return map_rows(lambda chunk: energies_and_partial_forces(expert, params, chunk), rows, chunk_size)


def _padded(rows: Neighborhood, max_neighbors: int) -> Neighborhood:
    """Rows with `max_neighbors` neighbour slots."""
    n, missing = rows.mask.shape[0], max_neighbors - rows.mask.shape[1]
    pad = [(0, 0), (0, missing)]
    return Neighborhood(
        jnp.asarray(np.pad(rows.displacement, [*pad, (0, 0)], constant_values=1.0)),
        jnp.asarray(np.pad(rows.mask, pad)),
        jnp.asarray(rows.center_species),
        jnp.asarray(np.pad(rows.neighbor_species, pad)),
        jnp.asarray(np.pad(rows.neighbor, pad, constant_values=n)),
    )


def __getattr__(name: str):
    raise missing_attribute(__name__, name)
