"""The joint loss of two experts: errors of their data, and their agreement in the cheap one's domain.

    loss = data(H; all frames) + data(L; energies of frames, forces of atoms, in its domain)
         + data(mixed energy; other frames, H owns the rows outside L's domain)
         + l_E mean_i (E_i^H - E_i^L)^2               rows in L's domain
         + l_P mean_i sum_k |g_ik^H - g_ik^L|^2       rows in L's domain
         + l_S mean |stress^H - stress^L|^2           periodic frames in L's domain
         + l_F mean |F^H - F^L|^2                     frames in L's domain
         + l_R mean |F^R - F^H|^2                     frames in L's domain, R a random assignment of rows

H is the expensive and L the cheap expert, and g_ik = dE_i / d displacement_ik are
partial forces. If they agree in shared environments, no expert boundary of any
shape carries a ghost force. When each row is assigned to either expert with
probability one half, the expected squared error of the mixed force is
1/4 |sum_i D_ik|^2 + 1/4 sum_i |D_ik|^2, where D is the difference of partial
forces. The second term is the l_P term, in closed form.

The stress term sums the same differences over all neighbours, with their signs:
this sum pushes whole layers at a planar boundary. The last two terms are off by
default. l_F is the agreement of arXiv:2604.26143, on total forces, which does not
constrain ghost forces. l_R samples the random assignments whose mean l_P contains
in closed form.

Only the data terms need labels. All terms follow from one evaluation of energies
and partial forces per expert.

Choosing weights. Squares of eV/Å set the scale: leave `forces` at 1. `energy` and
`stress` say which errors count alike: at 30, 1 meV/atom counts as much as
5.5 meV/Å. Then scale all weights of agreement together: halve them if the expensive
expert's validation error exceeds that of a training without agreement by more than
a tenth, double them if ghost forces remain too large. `agreement_gradient_scale`
divides the gradient of agreement between the experts: a lower value changes the
expensive expert less, and leaves more of the change to the cheap one.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Real

from moe_md import derivatives
from moe_md.data.batching import Batch
from moe_md.experts.base import Expert, Params
from moe_md.experts.chunks import energies_and_partial_forces
from moe_md.experts.domain import in_domain
from moe_md.neighbors.rows import Neighborhood
from moe_md.settings import LossWeights
from moe_md.training.sharding import map_row_shards


def _weights_from_leaves(_, leaves) -> LossWeights:
    """Weights without the checks of their values, as leaves may be tracers."""
    weights = object.__new__(LossWeights)
    vars(weights).update(zip(LossWeights.__dataclass_fields__, leaves))
    return weights


jax.tree_util.register_pytree_node(
    LossWeights, lambda weights: (tuple(vars(weights).values()), None), _weights_from_leaves
)


class Prediction(NamedTuple):
    """Energies and derivatives of a batch, from one expert or a mixture."""

    atom_energies: Float[Array, " n"]  # eV of each row, zero on padded rows
    partial_forces: Float[Array, "n K 3"]  # eV/Å
    energy: Float[Array, " frames"]  # eV
    forces: Float[Array, "n 3"]  # eV/Å
    stress: Float[Array, "frames 3 3"]  # eV/Å^3; meaningful in fully periodic frames only


def predict(expert: Expert, params: Params, batch: Batch, mesh: Mesh | None = None) -> Prediction:
    """Prediction of one expert for all rows of a batch; on a mesh, each device computes its share of rows."""
    energies, g = map_row_shards(partial(_partial_forces_with_fusion_barrier, expert), mesh)(
        params, batch.rows
    )
    return assemble(jnp.where(batch.row_mask, energies, 0.0), g, batch, mesh)


def _partial_forces_with_fusion_barrier(
    expert: Expert, params: Params, rows: Neighborhood
) -> tuple[Array, Array]:
    """Energies `[n_rows]` and partial forces `[n_rows, K, 3]`, the latter computed once.

    XLA for CPU would fuse the computation of the partial forces into each of
    their uses, and likewise that of their cotangents: the gradient of a loss of
    partial forces took nine times as long for the power spectrum. XLA does not
    fuse through a matrix product, so the partial forces are multiplied by the
    identity matrix. `jax.lax.optimization_barrier` has no effect on CPU.
    """
    energies, g = energies_and_partial_forces(expert, params, rows)
    return energies, jnp.dot(g, jnp.eye(3, dtype=g.dtype), precision=jax.lax.Precision.HIGHEST)


def assemble(
    atom_energies: Float[Array, " n"], g: Float[Array, "n K 3"], batch: Batch, mesh: Mesh | None = None
) -> Prediction:
    """Energies of frames, forces and stress from the energies and partial forces of rows.

    Args:
        atom_energies: eV of each row, zero on padded rows.
        g: eV/Å, partial forces dE_i / d displacement_ik.
        batch: the batch.
        mesh: devices that share the rows; None for one device.
    """
    n_rows, n_frames = batch.row_mask.shape[0], batch.n_atoms.shape[0]
    content = (atom_energies, g, batch.rows, batch.frame, jnp.arange(n_rows))
    sums = partial(_sums_over_rows, n_rows, n_frames)
    energy, forces, virial = map_row_shards(sums, mesh, add=True)((), content)
    return Prediction(atom_energies, g, energy, forces, virial / batch.volume[:, None, None])


def _sums_over_rows(n_rows: int, n_frames: int, _, content) -> tuple[Array, Array, Array]:
    """Energy `[n_frames]`, forces `[n_rows, 3]` and virial `[n_frames, 3, 3]` of the given rows."""
    energies, g, rows, frame, index = content
    return (
        jax.ops.segment_sum(energies, frame, n_frames),
        derivatives.forces(g, rows, index, n_rows),
        jax.ops.segment_sum(derivatives.virial(g, rows), frame, n_frames),
    )


def mix(
    first: Prediction,
    second: Prediction,
    first_owns: Bool[Array | np.ndarray, " n"],
    batch: Batch,
    mesh: Mesh | None = None,
) -> Prediction:
    """Prediction of a mixture in which `first` owns the rows where `first_owns` is True."""
    energies = jnp.where(first_owns, first.atom_energies, second.atom_energies)
    g = jnp.where(first_owns[:, None, None], first.partial_forces, second.partial_forces)
    return assemble(energies, g, batch, mesh)


def rows_in_domain(expert: Expert, batch: Batch) -> Bool[Array, " n"]:
    """Rows in the domain of an expert (`experts.domain`)."""
    rows = jax.tree.map(jnp.asarray, batch.rows)
    return batch.row_mask & jnp.asarray(in_domain(expert, rows))


def forces_in_domain(
    expert: Expert, row_in_domain: Bool[Array | np.ndarray, " n"], batch: Batch
) -> Bool[Array, " n"]:
    """Atoms whose forces are derivatives of rows in the domain alone: their own and their neighbours'."""
    rows = batch.rows
    near = rows.mask & (jnp.sum(rows.displacement**2, axis=-1) < expert.cutoff**2)
    of_neighbor = jnp.append(row_in_domain, True)[jnp.minimum(rows.neighbor, len(row_in_domain))]
    return row_in_domain & jnp.all(of_neighbor | ~near, axis=1)


def frames_in_domain(row_in_domain: Bool[Array | np.ndarray, " n"], batch: Batch) -> Bool[Array, " frames"]:
    """Frames whose rows are all in the domain."""
    out_of_domain = (batch.row_mask & ~row_in_domain).astype(jnp.int32)
    out_of_domain = jax.ops.segment_sum(out_of_domain, batch.frame, batch.n_atoms.shape[0])
    return (out_of_domain == 0) & (batch.n_atoms > 0)


def mean_where(
    mask: Bool[Array | np.ndarray, "..."], value: Float[Array | np.ndarray, "..."]
) -> Float[Array, ""]:
    """Mean of `value` over True entries of `mask`, zero if there are none."""
    mask = jnp.broadcast_to(mask, value.shape)
    return jnp.sum(jnp.where(mask, value, 0.0)) / jnp.maximum(jnp.sum(mask), 1)


def frame_and_row_weights(batch: Batch) -> tuple[Float[Array, " frames"], Float[Array, " n"]]:
    """Weight of each frame, and of each row's frame; zero on padded rows."""
    weight = jnp.asarray(batch.weight)
    return weight, jnp.append(weight, 0.0)[batch.frame]


class Errors(NamedTuple):
    """Mean squared errors of a batch, and how many numbers each mean is taken over.

    Each squared error is multiplied by the weight of its frame.
    """

    energy: Float[Array, ""]  # (eV/atom)^2
    forces: Float[Array, ""]  # (eV/Å)^2 per component
    stress: Float[Array, ""]  # (eV/Å^3)^2 per component
    count: Int[Array, "3"]  # number of labelled energies, force components, stress components


def errors(
    prediction: Prediction,
    batch: Batch,
    frames: Bool[Array | np.ndarray, " frames"],
    atoms: Bool[Array | np.ndarray, " n"] | None = None,
) -> Errors:
    """Mean squared errors against the labels of chosen frames.

    Args:
        prediction: prediction for the batch.
        batch: labels and their masks; missing labels enter no mean.
        frames: True for the frames whose energies and stresses count.
        atoms: True for the atoms whose forces count; default those of the frames.
    """
    row_chosen = jnp.append(frames, False)[batch.frame] if atoms is None else atoms
    energy_mask = batch.energy_mask & frames
    forces_mask = (batch.forces_mask & row_chosen)[:, None]
    stress_mask = (batch.stress_mask & frames)[:, None, None]
    per_atom = (prediction.energy - batch.energy) / jnp.maximum(batch.n_atoms, 1)
    weight, row_weight = frame_and_row_weights(batch)
    return Errors(
        mean_where(energy_mask, weight * per_atom**2),
        mean_where(forces_mask, row_weight[:, None] * (prediction.forces - batch.forces) ** 2),
        mean_where(stress_mask, weight[:, None, None] * (prediction.stress - batch.stress) ** 2),
        jnp.stack([jnp.sum(energy_mask), 3 * jnp.sum(forces_mask), 9 * jnp.sum(stress_mask)]),
    )


class Mismatch(NamedTuple):
    """Mean squared differences of two experts in their common domain.

    Each squared difference is multiplied by the weight of its frame.
    """

    energy: Float[Array, ""]  # eV^2 per row
    partial_forces: Float[Array, ""]  # (eV/Å)^2 per row, summed over its neighbours
    stress: Float[Array, ""]  # (eV/Å^3)^2 per component
    forces: Float[Array, ""]  # (eV/Å)^2 per component of the total forces
    # (eV/Å)^2 per component, forces of a random assignment of rows less those of the first; zero without one
    random_assignment: Float[Array, ""]
    count: Int[Array, "3"]  # number of rows, stress components, force components


def mismatch(
    first: Prediction,
    second: Prediction,
    shared_rows: Bool[Array | np.ndarray, " n"],
    shared_frames: Bool[Array | np.ndarray, " frames"],
    batch: Batch,
    random_assignment: Bool[Array | np.ndarray, " n"] | None = None,
    mesh: Mesh | None = None,
) -> Mismatch:
    """Differences of two predictions in the common domain of their experts.

    Args:
        first, second: predictions for the batch.
        shared_rows: rows in both domains.
        shared_frames: frames whose rows are all in both domains.
        batch: the batch. Stress is compared in fully periodic frames only.
        random_assignment: rows that the first expert owns in a random
            mixture; None computes no such mixture.
        mesh: devices that share the rows; None for one device.
    """
    periodic = (shared_frames & (batch.volume > 1.0))[:, None, None]
    weight, row_weight = frame_and_row_weights(batch)
    g2 = jnp.sum((first.partial_forces - second.partial_forces) ** 2, axis=(1, 2))
    in_frames = jnp.append(shared_frames, False)[batch.frame][:, None]

    def force_mismatch(forces: Float[Array, "n 3"]) -> Float[Array, ""]:
        return mean_where(in_frames, row_weight[:, None] * (forces - first.forces) ** 2)

    return Mismatch(
        mean_where(shared_rows, row_weight * (first.atom_energies - second.atom_energies) ** 2),
        mean_where(shared_rows, row_weight * g2),
        mean_where(periodic, weight[:, None, None] * (first.stress - second.stress) ** 2),
        force_mismatch(second.forces),
        jnp.zeros(())
        if random_assignment is None
        else force_mismatch(mix(first, second, random_assignment, batch, mesh).forces),
        jnp.stack([jnp.sum(shared_rows), 9 * jnp.sum(periodic), 3 * jnp.sum(in_frames)]),
    )


class Terms(NamedTuple):
    """Errors and mismatch of two experts on a batch."""

    expensive: Errors  # of all frames
    cheap: Errors  # of the frames, and of the forces of atoms, in the cheap expert's domain
    mixed: Errors  # of the other frames
    mismatch: Mismatch  # of rows and frames in the cheap expert's domain


def joint_terms(
    experts: Sequence[Expert],
    params: Sequence[Params],
    batch: Batch,
    gradient_scale: Real[ArrayLike, ""] = 1.0,
    random_assignment: Bool[Array | np.ndarray, " n"] | None = None,
    mesh: Mesh | None = None,
) -> Terms:
    """Errors of both experts and of their mixture, and their mismatch.

    Args:
        experts: the expensive one, whose domain has every species, and the cheap one.
        params: parameters of both.
        batch: labelled, partly labelled or unlabelled frames.
        gradient_scale: factor of the mismatch's gradient with respect to the
            expensive expert; with zero, agreement changes the cheap one only.
        random_assignment: as in `mismatch`.
        mesh: devices that share the rows (`sharding.on_devices`); None for one device.
    """
    expensive, cheap = (predict(e, p, batch, mesh) for e, p in zip(experts, params, strict=True))
    rows = rows_in_domain(experts[1], batch)
    frames = frames_in_domain(rows, batch)
    real = batch.n_atoms > 0
    mixed = mix(expensive, cheap, ~rows, batch, mesh)
    return Terms(
        errors(expensive, batch, real),
        errors(cheap, batch, frames, forces_in_domain(experts[1], rows, batch)),
        errors(mixed, batch, real & ~frames),
        mismatch(
            _scale_gradient(expensive, gradient_scale), cheap, rows, frames, batch, random_assignment, mesh
        ),
    )


def _scale_gradient(prediction: Prediction, scale: ArrayLike) -> Prediction:
    """The same numbers, with their gradient multiplied by `scale`."""
    constant = jax.lax.stop_gradient(prediction)
    return jax.tree.map(lambda x, stopped: stopped + scale * (x - stopped), prediction, constant)


def joint_loss(
    weights: LossWeights, terms: Terms, agreement: Real[ArrayLike, ""] = 1.0
) -> Float[Array, ""] | float:
    """Weighted sum of all terms.

    Args:
        weights: weight of each term.
        terms: from `joint_terms`.
        agreement: further factor of all agreement terms.
    """
    data = sum(
        weight * (weights.energy * e.energy + weights.forces * e.forces + weights.stress * e.stress)
        for weight, e in ((1.0, terms.expensive), (weights.cheap, terms.cheap), (weights.mixed, terms.mixed))
    )
    m = terms.mismatch
    agree = (
        weights.agree_energy * m.energy
        + weights.agree_partial_forces * m.partial_forces
        + weights.agree_stress * m.stress
        + weights.agree_forces * m.forces
        + weights.agree_random_assignment * m.random_assignment
    )
    return data + agree * agreement
