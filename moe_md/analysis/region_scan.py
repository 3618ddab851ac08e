"""Convergence of a region: error and speed of regions of several sizes, on the same frames.

Both experts are evaluated once on all atoms of each frame (`region_design.stored_frames`).
The forces of any mixture follow without a network,

    F_k = -sum_ie w_ie dE_ie/dR_k - sum_ie E_ie dw_ie/dR_k

with the gates w_ie, and are compared with the forces of expert 0 on all atoms. With f_e the
share of atoms whose gate is above zero, and c_e the time of an atom on expert e, the speed-up
over expert 0 alone is at most

    S = c_0 / sum_e f_e c_e

as lists, gates and integrator take time too.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ase.geometry import complete_cell
from jax import Array
from jaxtyping import Bool, Float

from moe_md.analysis.region_design import CHUNK, StoredFrames, gated_forces, stored_frames
from moe_md.checks import check_positive
from moe_md.data.batching import frame_rows
from moe_md.data.reading import Frame
from moe_md.experts.base import Expert, Params
from moe_md.experts.domain import in_domain
from moe_md.interfaces import ase_gates
from moe_md.interfaces.ase_gates import GateInputs
from moe_md.interfaces.cached_rows import ReferenceGeometry
from moe_md.neighbors.rows import image_pairs
from moe_md.regions import Region

STEPS = (0.1, 0.2, 0.25, 0.5, 1.0, 2.0, 2.5, 5.0, 10.0)  # Å, between radii
MAX_RADII = 7


class ScanFrames(NamedTuple):
    """Frames of the same atoms, and all that forces of their mixtures are computed from."""

    stored: StoredFrames
    inputs: tuple[GateInputs, ...]  # of each frame
    complete_within: float  # Å, distance within which the lists of `inputs` hold all neighbours
    in_domain: Bool[np.ndarray, "frames atoms"]  # atoms in the domain of expert 1


class Score(NamedTuple):
    """Error and cost of one region, averaged over frames. Differences are to expert 0 on all atoms."""

    shares: tuple[float, float]  # of the atoms, on each expert; atoms in a blend count for both
    speedup: float  # the most to gain over expert 0 on all atoms
    error_selected: float  # eV/Å, root mean square force difference over components of the selected atoms
    error_all: float  # eV/Å, the same over all atoms
    error_largest: float  # eV/Å, norm of the largest force difference of an atom
    out_of_domain: float  # atoms that expert 1 computes outside its domain, per frame


def scan_frames(
    experts: Sequence[Expert],
    params: Sequence[Params],
    frames: Sequence[Frame],
    *,
    chunk_size: int = CHUNK,
) -> ScanFrames:
    """Evaluate two experts on all atoms of some frames, and list what gates need.

    Partial forces take 48 bytes for each pair of neighbours and frame in float64: 20 MB for
    5,000 atoms with 80 neighbours.

    Args:
        experts: two, the expensive one first; neither passes messages.
        params: one parameter tree per expert.
        frames: of the same atoms in the same order, in any cell.
        chunk_size: rows computed at a time.

    Returns:
        The frames, in the default float dtype.

    Raises:
        ValueError: there are not two experts, one passes messages, or frames differ in their atoms.
    """
    stored = stored_frames(experts, params, frames, chunk_size=chunk_size)
    cutoff, known = max(e.cutoff for e in experts), experts[0].species
    inputs, within = gate_inputs(frames, known, cutoff)
    domain = [in_domain(experts[1], frame_rows(frame, known, cutoff, dtype=float)) for frame in frames]
    return ScanFrames(stored, inputs, within, np.stack([np.asarray(each) for each in domain]))


def gate_inputs(
    frames: Sequence[Frame], species: Sequence[str], cutoff: float
) -> tuple[tuple[GateInputs, ...], float]:
    """What gates on frames are computed from, and the distance (Å) within which lists are complete.

    Args:
        frames: of equal numbers of atoms.
        species: as `Expert.species`.
        cutoff: Å, wanted for the lists; a narrow cell allows less.
    """
    dtype, built, distances = jnp.zeros(()).dtype, [], []
    for frame in frames:
        numbers = np.array([species.index(symbol) for symbol in frame.symbols], np.int32)
        geometry = ReferenceGeometry(frame.positions, complete_cell(frame.cell), frame.pbc, numbers)
        pairs = image_pairs(frame.positions, frame.cell, frame.pbc, cutoff)
        idx, distance = ase_gates.gate_neighbors(geometry, pairs, cutoff, 0.0)
        arrays = (geometry.position.astype(dtype), geometry.cell.astype(dtype), geometry.pbc, numbers)
        built.append(GateInputs(*arrays, idx))
        distances.append(distance)
    # Lists of one width, so that one program serves all frames.
    width = max(each.idx.shape[1] for each in built)
    padded = [
        np.pad(each.idx, ((0, 0), (0, width - each.idx.shape[1])), constant_values=len(each.idx))
        for each in built
    ]
    return tuple(each._replace(idx=idx) for each, idx in zip(built, padded)), min(distances)


def selection(
    inputs: Sequence[GateInputs], region: Region, *, cutoff: float
) -> Bool[np.ndarray, "frames atoms"]:
    """Atoms of each frame with a gate of at least a half on expert 0.

    Args:
        inputs, cutoff: from `gate_inputs`.
        region: of two experts.
    """
    gates = [np.asarray(ase_gates.gate(region, each, cutoff=cutoff)) for each in inputs]
    return np.stack([gate[:, 0] >= 0.5 for gate in gates])


def forces(
    frames: ScanFrames, region: Region
) -> tuple[Float[np.ndarray, "frames atoms 2"], Float[np.ndarray, "frames atoms 3"]]:
    """Gates of a region, and forces of its mixture in eV/Å, gate-gradient forces included.

    No network is evaluated.

    Args:
        frames: from `scan_frames`.
        region: of two experts, static or differentiable.
    """
    stored, cutoff = frames.stored, frames.complete_within
    gates, found = [], []
    for f, inputs in enumerate(frames.inputs):
        gate = ase_gates.gate(region, inputs, cutoff=cutoff)
        force = _gated_forces(gate, stored.partial_force[f], stored.neighbor[f])
        if region.is_dynamic:
            of_gates, _ = ase_gates.gate_forces_and_virials(region, inputs, stored.energy[f], cutoff=cutoff)
            force = force + of_gates
        gates.append(np.asarray(gate))
        found.append(np.asarray(force))
    return np.stack(gates), np.stack(found)


def score(
    frames: ScanFrames,
    region: Region,
    selected: Bool[np.ndarray, "frames atoms"],
    seconds: Sequence[float],
) -> Score:
    """Error and cost of a region.

    Args:
        frames: from `scan_frames`.
        region: of two experts, static or differentiable.
        selected: atoms whose forces matter most, at least one.
        seconds: time of an atom on each expert, positive; only their ratio matters.

    Raises:
        ValueError: no atom is selected, or a time is not positive.
    """
    for each in seconds:
        check_positive("seconds", each)
    if not selected.any():
        raise ValueError("selected must hold an atom, got none in any frame.")
    gates, force = forces(frames, region)
    difference = np.asarray(force - np.asarray(frames.stored.force), float)
    active = gates > 0
    shares = active.mean(axis=(0, 1))
    return Score(
        shares=(float(shares[0]), float(shares[1])),
        speedup=float(seconds[0] / (shares @ np.asarray(seconds))),
        error_selected=_rms(difference[selected]),
        error_all=_rms(difference),
        error_largest=float(np.linalg.norm(difference, axis=-1).max()),
        out_of_domain=float(np.mean(np.sum(active[..., 1] & ~frames.in_domain, axis=1))),
    )


def recommended(scores: Sequence[Score], tolerance: float) -> int | None:
    """The region to use: the fastest whose error is converged.

    It is converged where the error on the selected atoms is at most the tolerance, for this
    region and for all larger ones: an error may be small by chance. Of such regions those that
    leave the cheap expert no atom outside its domain come first: elsewhere it is untrained.

    Args:
        scores: of regions from the smallest to the largest.
        tolerance: eV/Å.

    Returns:
        Its place among the scores; None where not even the largest region reaches the tolerance.

    >>> errors = (0.2, 0.01, 0.03, 0.015)
    >>> scores = [Score((0.1 * n, 1.0), 10.0 - n, error, 0.0, 0.0, 0.0) for n, error in enumerate(errors)]
    >>> [recommended(scores, tolerance) for tolerance in (0.05, 0.02, 0.01)]
    [1, 3, None]
    """
    converged: list[int] = []
    for k in reversed(range(len(scores))):
        if not scores[k].error_selected <= tolerance:
            break
        converged.append(k)
    inside = [k for k in converged if scores[k].out_of_domain == 0]
    return max(inside or converged, key=lambda k: scores[k].speedup, default=None)


def radii(start: float, stop: float) -> tuple[float, ...]:
    """At most 7 round radii from `start` to `stop`, both included, Å; `start` alone where `stop` is below.

    >>> radii(0.0, 11.3)
    (0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 11.3)
    """
    if not stop > start:
        return (start,)
    step = next((s for s in STEPS if (stop - start) / s <= MAX_RADII - 1), (stop - start) / (MAX_RADII - 1))
    inner = np.arange(start, stop - 0.25 * step, step)
    return tuple(round(float(r), 3) for r in (*inner, stop))


def furthest(frame: Frame, selected: Bool[np.ndarray, " atoms"]) -> float:
    """Largest distance of an atom from the nearest selected one, Å: from this core radius on all are inside.

    Distances are to the nearest image within half of the cell's smallest width.

    Args:
        frame: the structure.
        selected: at least one atom.
    """
    cell = np.asarray(complete_cell(frame.cell))
    fraction = np.linalg.solve(cell.T, frame.positions.T).T
    nearest = np.full(len(fraction), np.inf)
    for center in fraction[selected]:
        D = fraction - center
        D = (D - np.where(frame.pbc, np.rint(D), 0.0)) @ cell
        nearest = np.minimum(nearest, np.linalg.norm(D, axis=1))
    return float(nearest.max())


_gated_forces = jax.jit(gated_forces)


def _rms(values: np.ndarray | Array) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
