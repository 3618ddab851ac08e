"""Parameters at the start of a training: random ones, or those of another training."""

import hashlib
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from moe_md.checkpoint import Checkpoint
from moe_md.data.batching import Batch, Prepared, batches
from moe_md.data.dataset import Dataset, force_rms, isolated_atom_energies, reference_energies
from moe_md.data.labels import count_labels
from moe_md.experts.base import Expert, Params
from moe_md.experts.domain import in_domain
from moe_md.settings import TrainSettings
from moe_md.training.inputs import frame_weights
from moe_md.training.losses import predict

STATISTICS_BATCHES = 64
LEAST_SCALE = 1e-6  # over the largest value: what varies less is rounding


def initial_params(
    experts: Sequence[Expert], dataset: Dataset, settings: TrainSettings, train: Prepared
) -> tuple[Params, ...]:
    """Random parameters in float32, with the reference energies and the force scale of a dataset.

    Frames of very large forces count for the scale as they count in the loss
    (`frame_weights`). Without energies the references are zero, without forces the
    scale is 1 eV/Å.

    Args:
        experts: those to train.
        dataset: labelled frames, over the experts' species.
        settings: for the seed, `max_atoms`, `force_downweight_above` and `isolated_atoms`.
        train: the same frames with their rows, from which mean and scale of the inputs of an expert's
            network are computed.

    Raises:
        ValueError: as `isolated_atom_energies`, where `settings.isolated_atoms`.
    """
    counts = count_labels(dataset)
    if settings.isolated_atoms:
        references = isolated_atom_energies(dataset, train.cutoff)
    elif counts["energy"]:
        references = reference_energies(dataset)
    else:
        references = dict.fromkeys(dataset.species, 0.0)
    weights = frame_weights(dataset.frames, settings.force_downweight_above)
    scale = force_rms(dataset, weights) if counts["forces"] else 1.0
    params = []
    for n, expert in enumerate(experts):
        p = expert.init(jax.random.fold_in(jax.random.key(settings.seed), n))
        if "shift" in p:
            p["shift"] = jnp.asarray([references[s] for s in expert.species])
            p["scale"] = jnp.full(len(expert.species), scale)
        if expert.inputs is not None:
            p["inputs"] = input_statistics(expert, p, train, settings)
        params.append(p)
    return _single_precision(params)


def input_statistics(expert: Expert, params: Params, train: Prepared, settings: TrainSettings) -> Params:
    """Mean and standard deviation of the inputs of an expert's network over atoms in its domain.

    Those of up to `STATISTICS_BATCHES` batches. An input that does not vary keeps its scale of 1.
    """
    assert expert.inputs is not None
    inputs_fn = jax.jit(expert.inputs)
    rng = np.random.default_rng([settings.seed, 2])
    found = []
    for batch in itertools.islice(batches(train, max_atoms=settings.max_atoms, rng=rng), STATISTICS_BATCHES):
        chosen = batch.row_mask & np.asarray(in_domain(expert, batch.rows))
        found.append(np.asarray(inputs_fn(params, batch.rows), float)[chosen])
    inputs = np.concatenate(found)
    if len(inputs) == 0:
        return params["inputs"]
    scale = inputs.std(axis=0)
    varies = scale > LEAST_SCALE * np.abs(inputs).max(axis=0)
    return {"mean": jnp.asarray(inputs.mean(axis=0)), "scale": jnp.asarray(np.where(varies, scale, 1.0))}


def params_of_start(
    experts: Sequence[Expert], start: Checkpoint, dataset: Dataset, settings: TrainSettings, train: Prepared
) -> tuple[Params, ...]:
    """Parameters of a checkpoint with references of other labels; random ones for a cheap expert it lacks.

    Args:
        experts: those to train; the first is that of `start`.
        start: see `params_with_new_references`.
        dataset, settings, train: as for `initial_params`.
    """
    params = params_with_new_references(start, train, settings.max_atoms)
    if is_same_expert(experts[1], start.experts[1]):
        return params
    expensive, (_, cheap) = params[0], initial_params(experts, dataset, settings, train)
    # Of atoms as well as of frames, energies must agree.
    return expensive, {**cheap, **{k: expensive[k] for k in ("shift",) if k in cheap and k in expensive}}


def is_same_expert(first: Expert, second: Expert) -> bool:
    """Whether two experts are of one builder with the same arguments."""
    return first.config == second.config


def params_with_new_references(start: Checkpoint, train: Prepared, max_atoms: int) -> tuple[Params, ...]:
    """Parameters of a checkpoint in float32, with reference energies shifted to other labels.

    The shift of each species is the least-squares fit of the expensive expert's
    energy errors on composition; both experts get the same shift.

    Args:
        start: the checkpoint, its expensive expert first.
        train: labelled frames.
        max_atoms: atoms per batch.
    """
    expert, params = start.expensive
    energy_fn = jax.jit(lambda batch: predict(expert, params, batch).energy)
    composition, missing = [], []
    for batch in batches(train, max_atoms=max_atoms):
        composition.append(_composition(batch, len(expert.species))[batch.energy_mask])
        missing.append((batch.energy - np.asarray(energy_fn(batch)))[batch.energy_mask])
    shift = np.zeros(len(expert.species))
    if sum(map(len, missing)):
        shift = np.linalg.lstsq(np.concatenate(composition), np.concatenate(missing), rcond=None)[0]
    return _single_precision(
        [{**p, "shift": p["shift"] + shift} if "shift" in p else p for p in start.params]
    )


def _composition(batch: Batch, n_species: int) -> np.ndarray:
    """Number of atoms of each species in each frame, `[n_frames, n_species]`."""
    counts = np.zeros((len(batch.n_atoms), n_species))
    real = batch.row_mask
    np.add.at(counts, (batch.frame[real], batch.rows.center_species[real]), 1.0)
    return counts


def digest_params(params: Sequence[Params]) -> str:
    """SHA-256 of all parameters."""
    leaves = [np.ascontiguousarray(leaf).tobytes() for leaf in jax.tree.leaves(params)]
    return hashlib.sha256(b"".join(leaves)).hexdigest()


def _single_precision(params: Sequence[Params]) -> tuple[Params, ...]:
    return tuple(jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), p) for p in params)
