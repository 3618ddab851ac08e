"""The batches of every training step: labelled frames, and unlabelled environments.

Both follow from the seed and the number of the step, so that a resumed training
continues with the same batches.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from moe_md.data.batching import Batch, Prepared, batches, collate, frame_rows
from moe_md.data.environments import ROWS_PER_CLUSTER, Lattice, lattice, perfect_crystal, random_rows
from moe_md.data.reading import Frame
from moe_md.data.references import Reference
from moe_md.experts.base import Expert
from moe_md.neighbors.rows import Neighborhood
from moe_md.settings import EnvironmentSettings, TrainSettings

NEIGHBOR_STEP = 16  # `max_neighbors` of unlabelled batches is a multiple of this
LARGEST_CELL = 24  # atoms of a cell of which perfect crystals are drawn


def training_inputs(
    environments: "Environments | None", train: Prepared, settings: TrainSettings, first_step: int
) -> Iterator[tuple[Batch, Batch | None]]:
    """Labelled and unlabelled batch of every step from `first_step` (from 0) on, without end."""
    for step, labelled in enumerate(labelled_batches(train, settings, first_step), first_step):
        yield labelled, environment_batch(environments, settings.seed, step)


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


class Environments(NamedTuple):
    """Unlabelled environments of a training: what they are cut from, and the shape of their batches."""

    lattices: tuple[Lattice, ...]
    settings: EnvironmentSettings
    species: tuple[str, ...]
    cutoff: float  # Å
    perfect_rows: int  # most atoms of perfect crystals in a batch
    max_neighbors: int


def environments_of(
    references: Sequence[Reference], experts: Sequence[Expert], settings: EnvironmentSettings
) -> Environments | None:
    """Make references ready; None where settings ask for no environments.

    Raises:
        ValueError: a reference has an element that the experts do not know, or nothing can be drawn.
    """
    if settings.is_empty:
        return None
    species, cutoff = experts[0].species, max(e.cutoff for e in experts)
    lattices = tuple(lattice(reference, species, cutoff, settings) for reference in references)
    sizes = [each.n_cell for each in lattices if _has_perfect_cell(each)]
    perfect_rows = max(settings.perfect_rows, max(sizes)) if sizes and settings.perfect_rows else 0
    if perfect_rows + settings.environment_rows == 0:
        raise ValueError(
            "environment_rows must be positive where no reference is a crystal of at most"
            f" {LARGEST_CELL} atoms, got 0: perfect_rows alone draws nothing."
        )
    # Crystals at the largest compression have nearly as many neighbours as any row drawn.
    densest = max(_most_neighbors(each, cutoff, 1.4 * settings.max_strain) for each in lattices)
    return Environments(lattices, settings, species, cutoff, perfect_rows, _rounded(densest))


def _has_perfect_cell(each: Lattice) -> bool:
    return each.reference.is_crystal and each.n_cell <= LARGEST_CELL


def _most_neighbors(each: Lattice, cutoff: float, compression: float) -> int:
    """Largest number of neighbours of an atom of the cell under compression."""
    distance = np.linalg.norm(each.position[None] - each.position[: each.n_cell, None], axis=2)
    return int(((1 - compression) * distance < cutoff).sum(axis=1).max()) - 1


def _rounded(neighbors: int) -> int:
    return max(1, -(-neighbors // NEIGHBOR_STEP)) * NEIGHBOR_STEP


def environment_batch(environments: Environments | None, seed: int, step: int) -> Batch | None:
    """Unlabelled environments of one step, padded to few shapes; None where there are none.

    Rows of distorted environments belong to frames that are not complete: `Batch.n_atoms` is zero, so
    that total forces and stress are compared in perfect crystals only. The mean square disagreement of
    all rows is half that of distorted ones, plus half that of perfect ones times `perfect_weight`,
    whatever the number of atoms in a cell. Perfect crystals have a weight of their own because thermal
    differences between two experts average out in a simulation, while differences in a perfect crystal
    do not, however small.
    """
    if environments is None:
        return None
    settings = environments.settings
    rng = np.random.default_rng([seed, 1, step])
    frames = _perfect_crystals(rng, environments, step)
    rows = list(_distorted_rows(rng, environments, step))
    n_perfect, n_distorted = sum(len(frame.symbols) for frame in frames), settings.environment_rows
    share = [
        2 * n / (n_perfect + n_distorted) if n_perfect and n_distorted else 1.0
        for n in (n_perfect, n_distorted)
    ]
    cached = [frame_rows(frame, environments.species, environments.cutoff) for frame in frames]
    widest = max((each.mask.shape[1] for each in (*cached, *rows)), default=1)
    return collate(
        frames,
        environments.species,
        environments.cutoff,
        n_rows=environments.perfect_rows + n_distorted,
        max_neighbors=max(environments.max_neighbors, _rounded(widest)),
        n_frames=environments.perfect_rows + -(-n_distorted // ROWS_PER_CLUSTER),
        cached_rows=cached,
        weights=[settings.perfect_weight / share[0]] * len(frames),
        further_rows=rows,
        further_weights=[1.0 / share[1]] * len(rows),
    )


def _perfect_crystals(rng: np.random.Generator, environments: Environments, step: int) -> list[Frame]:
    """Cells of the crystals in turn, as many as fit; their isotropic strains are spread evenly."""
    crystals = [each for each in environments.lattices if _has_perfect_cell(each)]
    chosen, free = [], environments.perfect_rows
    while crystals and (each := crystals[(step + len(chosen)) % len(crystals)]).n_cell <= free:
        chosen.append(each)
        free -= each.n_cell
    largest = environments.settings.max_perfect_strain
    strains = [largest * (2.0 * (k + rng.random()) / len(chosen) - 1.0) for k in range(len(chosen))]
    return [
        perfect_crystal(rng, each, strain, environments.settings) for each, strain in zip(chosen, strains)
    ]


def _distorted_rows(
    rng: np.random.Generator, environments: Environments, step: int
) -> Iterator[Neighborhood]:
    """Rows of distorted environments, some of each cluster."""
    left, settings = environments.settings.environment_rows, environments.settings
    while left > 0:
        each = environments.lattices[int(rng.integers(len(environments.lattices)))]
        n = min(left, ROWS_PER_CLUSTER)
        yield random_rows(rng, each, settings, environments.cutoff, n)
        left -= n
