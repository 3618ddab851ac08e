"""The joint loss of two experts: data, and agreement on the cheap one's domain.

    loss = data(H; all frames) + data(L; frames in its domain)
         + data(mixed energy; other frames, H on the rows outside L's domain)
         + l_E mean_i (E_i^H - E_i^L)^2               rows in L's domain
         + l_P mean_i sum_k |g_ik^H - g_ik^L|^2       rows in L's domain
         + l_S mean |stress^H - stress^L|^2           periodic frames in L's domain
         + l_F mean |F^H - F^L|^2                     frames in L's domain
         + l_R mean |F^R - F^H|^2                     the same, R a mixture of rows by lot

with g_ik = dE_i / d displacement_ik. If the partial forces of shared
environments agree, no seam of any shape carries a ghost force. For fair-coin
assignments of rows the expected squared error of the mixed force is
1/4 |sum_i D_ik|^2 + 1/4 sum_i |D_ik|^2 with D the difference of partial
forces: the second term is the l_P term in closed form.

The stress term is a sum of the same differences over slots, but a coherent one:
what is left of it pushes whole layers at a planar seam. The last two are off by
default: l_F is the agreement of arXiv:2604.26143, which seams of any kind do
not feel, and l_R draws the lots whose mean l_P has in closed form.

Every term but data needs no labels. All follow from one evaluation of energies
and partial forces per expert.

Choosing weights. Squares of eV/Å are the measure: `forces` stays 1. `energy` and
`stress` say which errors count alike: at 30, 1 meV/atom weighs as much as
5.5 meV/Å. Then agreement, all its weights together: halve them if the expensive
expert's validation error is more than a tenth above that of a training without,
double them if seams still push. `agreement_gradient_scale` says who yields: a lower one
spares the expensive expert and leaves the cheap one to follow alone.
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

from moe_md import derivatives
from moe_md.data.batching import Batch
from moe_md.experts.base import Expert, Params, energies_and_partial_forces
from moe_md.experts.domain import in_domain
from moe_md.neighbors.rows import Neighborhood
from moe_md.settings import LossWeights
from moe_md.training.sharding import each_its_rows


def _weights_of(_, leaves) -> LossWeights:
    """Weights of leaves that may be traced, so unchecked."""
    weights = object.__new__(LossWeights)
    vars(weights).update(zip(LossWeights.__dataclass_fields__, leaves))
    return weights


jax.tree_util.register_pytree_node(
    LossWeights, lambda weights: (tuple(vars(weights).values()), None), _weights_of
)


class Prediction(NamedTuple):
    """Energies and derivatives of a batch by one expert, or a mixture."""

    atom_energies: Array  # [n_rows] eV, zero on padded rows
    partial_forces: Array  # [n_rows, K, 3] eV/Å
    energy: Array  # [n_frames] eV
    forces: Array  # [n_rows, 3] eV/Å
    stress: Array  # [n_frames, 3, 3] eV/Å^3; only periodic frames have one


def predict(expert: Expert, params: Params, batch: Batch, mesh: Mesh | None = None) -> Prediction:
    """One expert on every row of a batch; on a mesh of devices each computes its own rows."""
    energies, g = each_its_rows(partial(_partial_forces_with_fusion_barrier, expert), mesh)(
        params, batch.rows
    )
    return assemble(jnp.where(batch.row_mask, energies, 0.0), g, batch, mesh)


def _partial_forces_with_fusion_barrier(
    expert: Expert, params: Params, rows: Neighborhood
) -> tuple[Array, Array]:
    """Energies and partial forces, the latter computed once.

    XLA for CPU fuses what the partial forces are made of into each of their
    uses, and theirs into those of their cotangents: on a loss of partial forces
    the power spectrum's gradient took nine times as long. It fuses nothing
    through a product, so one with the identity stands between, in both
    directions; it drops `jax.lax.optimization_barrier`.
    """
    energies, g = energies_and_partial_forces(expert, params, rows)
    return energies, jnp.dot(g, jnp.eye(3, dtype=g.dtype), precision=jax.lax.Precision.HIGHEST)


def assemble(atom_energies: Array, g: Array, batch: Batch, mesh: Mesh | None = None) -> Prediction:
    """Totals, forces and stress from what each row gives."""
    n_rows, n_frames = batch.row_mask.shape[0], batch.n_atoms.shape[0]

    def sums(_, content) -> tuple[Array, Array, Array]:
        energies, g, rows, frame, index = content
        return (
            jax.ops.segment_sum(energies, frame, n_frames),
            derivatives.forces(g, rows, index, n_rows),
            jax.ops.segment_sum(derivatives.virial(g, rows), frame, n_frames),
        )

    content = (atom_energies, g, batch.rows, batch.frame, jnp.arange(n_rows))
    energy, forces, virial = each_its_rows(sums, mesh, add=True)((), content)
    return Prediction(atom_energies, g, energy, forces, virial / batch.volume[:, None, None])


def mix(
    first: Prediction, second: Prediction, first_owns: Array, batch: Batch, mesh: Mesh | None = None
) -> Prediction:
    """The mixture in which `first` owns the rows of `first_owns`, `[n_rows]` bool."""
    energies = jnp.where(first_owns, first.atom_energies, second.atom_energies)
    g = jnp.where(first_owns[:, None, None], first.partial_forces, second.partial_forces)
    return assemble(energies, g, batch, mesh)


def rows_in_domain(expert: Expert, batch: Batch) -> Array:
    """Rows of a batch that hold an atom and are in the expert's domain: `[n_rows]` bool."""
    return jnp.asarray(batch.row_mask & in_domain(expert, batch.rows))


def frames_in_domain(row_in_domain: Array, batch: Batch) -> Array:
    """Frames all of whose rows are in the domain: `[n_frames]` bool."""
    outside = (batch.row_mask & ~row_in_domain).astype(jnp.int32)
    outside = jax.ops.segment_sum(outside, batch.frame, batch.n_atoms.shape[0])
    return (outside == 0) & (batch.n_atoms > 0)


def mean_where(mask: Array, value: Array) -> Array:
    """Mean of `value` over True entries of `mask`; zero where there is none."""
    mask = jnp.broadcast_to(mask, value.shape)
    return jnp.sum(jnp.where(mask, value, 0.0)) / jnp.maximum(jnp.sum(mask), 1)


def weights_of(batch: Batch) -> tuple[Array, Array]:
    """Weight of each frame, `[n_frames]`, and of each row, `[n_rows]`."""
    weight = jnp.asarray(batch.weight)
    return weight, jnp.append(weight, 0.0)[batch.frame]


class Errors(NamedTuple):
    """Mean squared errors of a batch, each times its frame's weight, and of how many numbers each is."""

    energy: Array  # (eV/atom)^2
    forces: Array  # (eV/Å)^2 per component
    stress: Array  # (eV/Å^3)^2 per component
    count: Array  # [3] labelled frames, force components, stress components


def errors(prediction: Prediction, batch: Batch, frames: Array | np.ndarray) -> Errors:
    """Squared errors against the labels that the chosen frames have.

    Args:
        prediction: of the batch.
        batch: labels and masks; a missing label counts nowhere.
        frames: `[n_frames]` bool.
    """
    row_frame = jnp.append(frames, False)[batch.frame]
    energy_mask = batch.energy_mask & frames
    forces_mask = (batch.forces_mask & row_frame)[:, None]
    stress_mask = (batch.stress_mask & frames)[:, None, None]
    per_atom = (prediction.energy - batch.energy) / jnp.maximum(batch.n_atoms, 1)
    weight, row_weight = weights_of(batch)
    return Errors(
        mean_where(energy_mask, weight * per_atom**2),
        mean_where(forces_mask, row_weight[:, None] * (prediction.forces - batch.forces) ** 2),
        mean_where(stress_mask, weight[:, None, None] * (prediction.stress - batch.stress) ** 2),
        jnp.stack([jnp.sum(energy_mask), 3 * jnp.sum(forces_mask), 9 * jnp.sum(stress_mask)]),
    )


class Mismatch(NamedTuple):
    """Mean squared disagreement of two experts on shared rows, each times its frame's weight."""

    energy: Array  # eV^2 per row
    partial_forces: Array  # (eV/Å)^2 per row, summed over its slots
    stress: Array  # (eV/Å^3)^2 per component
    forces: Array  # (eV/Å)^2 per component of the total forces
    # (eV/Å)^2 per component, what a mixture by lot adds to the forces of the first; zero without one
    lots: Array
    count: Array  # [3] rows, stress components, force components


def mismatch(
    first: Prediction,
    second: Prediction,
    shared_rows: Array,
    shared_frames: Array,
    batch: Batch,
    lots: Array | None = None,
    mesh: Mesh | None = None,
) -> Mismatch:
    """Disagreement of two predictions where both experts are at home.

    Args:
        first, second: of one batch.
        shared_rows: `[n_rows]` bool, rows in both domains.
        shared_frames: `[n_frames]` bool, frames wholly in both.
        batch: the batch. Stress is compared in periodic frames only.
        lots: `[n_rows]` bool, rows that the first owns in a mixture by lot; None for no such mixture.
        mesh: devices that rows are spread over.
    """
    periodic = (shared_frames & (batch.volume > 1.0))[:, None, None]
    weight, row_weight = weights_of(batch)
    g2 = jnp.sum((first.partial_forces - second.partial_forces) ** 2, axis=(1, 2))
    in_frames = jnp.append(shared_frames, False)[batch.frame][:, None]

    def of_forces(forces: Array) -> Array:
        return mean_where(in_frames, row_weight[:, None] * (forces - first.forces) ** 2)

    return Mismatch(
        mean_where(shared_rows, row_weight * (first.atom_energies - second.atom_energies) ** 2),
        mean_where(shared_rows, row_weight * g2),
        mean_where(periodic, weight[:, None, None] * (first.stress - second.stress) ** 2),
        of_forces(second.forces),
        jnp.zeros(()) if lots is None else of_forces(mix(first, second, lots, batch, mesh).forces),
        jnp.stack([jnp.sum(shared_rows), 9 * jnp.sum(periodic), 3 * jnp.sum(in_frames)]),
    )


class Terms(NamedTuple):
    """What a batch says of two experts."""

    expensive: Errors  # all frames
    cheap: Errors  # frames in its domain
    mixed: Errors  # the other frames
    mismatch: Mismatch


def joint_terms(
    experts: Sequence[Expert],
    params: Sequence[Params],
    batch: Batch,
    pull: ArrayLike = 1.0,
    lots: Array | None = None,
    mesh: Mesh | None = None,
) -> Terms:
    """Errors of both experts and of their mixture, and their disagreement.

    Args:
        experts: the expensive one (whose domain is every species), the cheap one.
        params: theirs.
        batch: labelled, partly labelled or unlabelled frames.
        pull: share of the gradient of their disagreement that reaches the
            expensive expert; with zero only the cheap one yields.
        lots: as `mismatch`.
        mesh: devices that rows are spread over (`sharding.on_devices`).
    """
    expensive, cheap = (predict(e, p, batch, mesh) for e, p in zip(experts, params, strict=True))
    rows = rows_in_domain(experts[1], batch)
    frames = frames_in_domain(rows, batch)
    real = batch.n_atoms > 0
    mixed = mix(expensive, cheap, ~rows, batch, mesh)
    return Terms(
        errors(expensive, batch, real),
        errors(cheap, batch, frames),
        errors(mixed, batch, real & ~frames),
        mismatch(_pulled(expensive, pull), cheap, rows, frames, batch, lots, mesh),
    )


def _pulled(prediction: Prediction, share: ArrayLike) -> Prediction:
    """The same numbers, with a share of their gradient."""
    held = jax.lax.stop_gradient(prediction)
    return jax.tree.map(lambda x, stopped: stopped + share * (x - stopped), prediction, held)


def joint_loss(weights: LossWeights, terms: Terms, agreement: ArrayLike = 1.0) -> Array:
    """The weighted sum of all terms, those of agreement times `agreement` besides."""
    data = sum(
        share * (weights.energy * e.energy + weights.forces * e.forces + weights.stress * e.stress)
        for share, e in ((1.0, terms.expensive), (weights.cheap, terms.cheap), (weights.mixed, terms.mixed))
    )
    m = terms.mismatch
    agree = (
        weights.agree_energy * m.energy
        + weights.agree_partial_forces * m.partial_forces
        + weights.agree_stress * m.stress
        + weights.agree_forces * m.forces
        + weights.agree_random_assignment * m.lots
    )
    return data + agree * agreement
