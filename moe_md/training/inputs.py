"""The batches of every training step: labelled frames, and unlabelled environments.

Both follow from the seed and the number of the step, so that a resumed training
continues with the same batches.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from moe_md.data.batching import Batch, Prepared, batches, collate, frame_rows
from moe_md.data.environments import ideal_crystals, metal_frames
from moe_md.data.reading import Frame
from moe_md.data.structures import fcc_supercell
from moe_md.experts.base import Expert
from moe_md.settings import TrainSettings

NEIGHBOR_STEP = 16  # `max_neighbors` of unlabelled batches is a multiple of this


def training_inputs(
    experts: Sequence[Expert], train: Prepared, settings: TrainSettings, first_step: int
) -> Iterator[tuple[Batch, Batch | None]]:
    """Labelled and unlabelled batch of every step from `first_step` (from 0) on, without end."""
    for step, labelled in enumerate(labelled_batches(train, settings, first_step), first_step):
        yield labelled, environment_batch(experts, settings, step)


def labelled_batches(train: Prepared, settings: TrainSettings, first_step: int) -> Iterator[Batch]:
    """Labelled batches from the one of `first_step` on, without end; each epoch is shuffled."""
    epoch, step, weights = 0, 0, frame_weights(train.frames, settings.force_downweight_above)
    while True:
        rng = np.random.default_rng([settings.seed, 0, epoch])
        for batch in batches(train, max_atoms=settings.max_atoms, rng=rng, weights=weights):
            if step >= first_step:
                yield batch
            step += 1
        epoch += 1


def frame_weights(frames: Sequence[Frame], force_downweight_above: float) -> list[float]:
    """Weight of each frame in the loss.

    It is (force_downweight_above / F)^2 where the frame's root mean square force F
    is larger, else 1, also without forces. Some strongly compressed frames are
    needed, so that potentials repel atoms at short distances, but at full weight
    the squares of their forces would dominate the loss.

    Args:
        frames: the frames.
        force_downweight_above: eV/Å, positive.
    """
    sizes = [0.0 if f.forces is None else float(np.sqrt(np.mean(f.forces**2))) for f in frames]
    return [min(1.0, force_downweight_above / size) ** 2 if size else 1.0 for size in sizes]


def environment_batch(experts: Sequence[Expert], settings: TrainSettings, step: int) -> Batch | None:
    """Unlabelled metal environments of one step, padded to few shapes; None where settings ask for none.

    They are distorted structures, and ideal crystals under strain, which have a
    weight of their own: thermal differences between two experts average out in a
    simulation, while differences in the ideal crystal do not, however small.
    """
    n_atoms = settings.unlabelled_atoms + settings.ideal_crystals
    if n_atoms == 0:
        return None
    rng = np.random.default_rng([settings.seed, 1, step])
    crystal = {"symbol": settings.metal, "lattice_constant": settings.lattice_constant}
    frames = ideal_crystals(rng, settings.ideal_crystals, max_strain=settings.max_ideal_strain, **crystal)
    weights = [settings.ideal_crystal_weight] * len(frames)
    if settings.unlabelled_atoms:
        distortion = {"max_strain": settings.max_strain, "max_rattle": settings.max_rattle}
        frames += metal_frames(rng, settings.unlabelled_atoms, **distortion, **crystal)
        weights += [1.0] * (len(frames) - len(weights))
    species, cutoff = experts[0].species, max(e.cutoff for e in experts)
    rows = [frame_rows(f, species, cutoff) for f in frames]
    # A crystal at the largest compression has nearly as many neighbours as any structure drawn.
    dense = fcc_supercell(settings.metal, settings.lattice_constant * (1 - settings.max_strain), 1)
    dense_rows = frame_rows(dense, species, cutoff + settings.max_rattle)
    max_neighbors = max(r.mask.shape[1] for r in (dense_rows, *rows))
    return collate(
        frames,
        species,
        cutoff,
        n_rows=n_atoms,
        max_neighbors=-(-max_neighbors // NEIGHBOR_STEP) * NEIGHBOR_STEP,
        n_frames=settings.unlabelled_atoms // 4 + settings.ideal_crystals,
        cached_rows=rows,
        weights=weights,
    )
