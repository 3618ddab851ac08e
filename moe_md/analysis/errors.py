"""Errors on labelled frames: of each expert, and of the mixture with a region.

    by kind of frame         energy, forces, stress
    by species, environment  forces
    by distance to the seam  forces, beside the expensive expert's on the same atoms

The cheap expert counts on frames wholly in its domain, as in the loss. The
mixture counts where it is one: on frames in which both experts own atoms; beside
it stands the expensive expert on the same frames (`expensive_where_mixed`). Root
mean squares run over components (nine of a stress), as in training. A missing
label counts nowhere.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import jax
import numpy as np

from moe_md.analysis.environments import ENVIRONMENTS, Rule, boundary_distance
from moe_md.checkpoint import Checkpoint
from moe_md.data.batching import Batch, pack_batch, packs, prepare
from moe_md.data.dataset import Dataset, dataset_from_frames
from moe_md.data.reading import Frame
from moe_md.training.evaluation import QUANTITIES
from moe_md.training.losses import frames_in_domain, mix, predict, rows_in_domain

WHO = ("expensive", "cheap", "mixed", "expensive_where_mixed")
UNITS = QUANTITIES["expensive"]


class Outcome(NamedTuple):
    """What one potential says of one frame."""

    energy: float  # eV
    forces: np.ndarray  # [n_atoms, 3] eV/Å
    stress: np.ndarray | None  # [3, 3] eV/Å^3; None where the frame is not fully periodic


class Compared(NamedTuple):
    """A labelled frame, and what the experts and their mixture say of it."""

    frame: Frame
    owner: np.ndarray  # [n_atoms] int, 0 for the expensive expert
    in_domain: bool  # the cheap expert may meet all of it
    expensive: Outcome
    cheap: Outcome
    mixed: Outcome

    @property
    def has_seam(self) -> bool:
        """Whether both experts own atoms."""
        return bool(np.ptp(self.owner))

    def outcome(self, who: str) -> Outcome | None:
        """What one of `WHO` says; None where it does not count."""
        counts = {"expensive": True, "cheap": self.in_domain}.get(who, self.has_seam)
        return getattr(self, who.removesuffix("_where_mixed")) if counts else None


def compare(
    checkpoint: Checkpoint, dataset: Dataset, rule: Rule, *, max_atoms: int = 64, dtype=np.float32
) -> list[Compared]:
    """Both experts and their mixture on every frame.

    Args:
        checkpoint: two experts that pass no messages, the expensive one first.
        dataset: frames; labels may be missing.
        rule: which expert owns which atom of a frame.
        max_atoms: rows per batch; a larger frame gets a batch of its own.
        dtype: of the computation. Energies of atoms are added up in float64.

    Returns:
        One entry per frame, in their order.

    Raises:
        ValueError: the checkpoint has not two such experts, there is no frame,
            or a species is unknown.
    """
    check_two(checkpoint)
    dataset = dataset_from_frames(dataset.frames, checkpoint.experts[0].species)
    prepared = prepare(dataset, max(e.cutoff for e in checkpoint.experts), dtype=dtype)
    owners = [_checked_owner(rule(frame), frame, k) for k, frame in enumerate(dataset.frames)]
    outcomes_fn = jax.jit(partial(_outcomes, checkpoint.experts))
    found: dict[int, Compared] = {}
    for shape, pack in packs(prepared, max_atoms=max_atoms):
        batch = pack_batch(prepared, shape, pack)
        owned = np.zeros(shape.n_rows, bool)
        here = np.concatenate([owners[k] for k in pack]) == 0
        owned[: len(here)] = here
        predictions, in_domain = jax.device_get(outcomes_fn(tuple(checkpoint.params), batch, owned))
        start = 0
        for position, k in enumerate(pack):
            frame = dataset.frames[k]
            rows = slice(start, start + len(frame.symbols))
            three = (_outcome(p, rows, position, frame) for p in predictions)
            found[k] = Compared(frame, owners[k], bool(in_domain[position]), *three)
            start = rows.stop
    return [found[k] for k in range(len(dataset.frames))]


def report(compared: Sequence[Compared], environment_fn: Callable[[Frame], np.ndarray]) -> dict:
    """Errors in numbers fit for JSON.

    Args:
        compared: from `compare`.
        environment_fn: the environment of each atom of a frame.

    Returns:
        `"all"` and each entry of `"kinds"` hold `frames` and, for each of
        `WHO`, `energy_meV_per_atom`, `forces_meV_per_A` and `stress_GPa`; each
        entry of `"species"` and `"environments"` holds `atoms` and for each of
        `WHO` the forces. An error is `{"rmse", "mae", "count"}`, the last the
        numbers averaged over; None where nothing counts. `"seam"`: see
        `seam_report`.
    """
    environment = [environment_fn(c.frame) for c in compared]
    symbols = [np.array(c.frame.symbols) for c in compared]
    names = [c.frame.kind or "unnamed" for c in compared]
    kinds = {
        kind: _of_frames([c for c, name in zip(compared, names) if name == kind])
        for kind in sorted(set(names))
    }
    species = sorted({s for c in compared for s in c.frame.symbols})
    return {
        "all": _of_frames(compared),
        "kinds": kinds,
        "species": {s: _of_atoms(compared, [x == s for x in symbols]) for s in species},
        "environments": {
            name: _of_atoms(compared, [x == name for x in environment]) for name in ENVIRONMENTS
        },
        "seam": seam_report(compared),
    }


def seam_report(compared: Sequence[Compared], *, width: float = 1.0, reach: float = 12.0) -> dict:
    """Forces of the mixture beside those of the expensive expert, on the same atoms.

    Args:
        compared: from `compare`; frames without a seam count nowhere.
        width: Å, of a bin of distance to the seam (`boundary_distance`).
        reach: Å, atoms farther than this from the seam are in no bin.

    Returns:
        `"whole"`, `"inside"` and `"outside"` the region, and a list `"bins"`
        with their `"from"` and `"to"` (Å, negative outside). Each holds
        `atoms` (labelled ones), root mean square errors `expensive` and
        `mixed` against the labels, `excess` = mixed - expensive, and `change`,
        the root mean square difference of the two potentials (which needs no
        labels); meV/Å, None where there is nothing to average. And `frames`,
        those with a seam.
    """
    found = [c for c in compared if c.has_seam]
    distance = [boundary_distance(c.frame, c.owner, reach=reach) for c in found]
    everything = np.concatenate(distance) if found else np.zeros(0)
    edges = width * np.arange(np.floor(-reach / width), np.ceil(reach / width) + 1)
    bins = []
    for low, high in pairwise(edges):
        # A distance is never zero; bins are open at zero and closed at their far end.
        chosen = [(d >= low) & (d < high) if high <= 0 else (d > low) & (d <= high) for d in distance]
        if any(c.any() for c in chosen):
            bins.append({"from": float(low), "to": float(high), **_mixed_and_expensive(found, chosen)})
    return {
        "frames": len(found),
        "atoms": len(everything),
        "whole": _mixed_and_expensive(found, [np.ones(len(d), bool) for d in distance]),
        "inside": _mixed_and_expensive(found, [d > 0 for d in distance]),
        "outside": _mixed_and_expensive(found, [d < 0 for d in distance]),
        "bins": bins,
    }


def check_two(checkpoint: Checkpoint) -> None:
    """Raise `ValueError` unless a checkpoint holds two experts that pass no messages."""
    if len(checkpoint.experts) != 2:
        raise ValueError(f"checkpoint must hold two experts, got {len(checkpoint.experts)}.")
    if max(e.num_hops for e in checkpoint.experts) > 1:
        raise ValueError(
            "checkpoint must hold experts that pass no messages, as their rows are mixed one by one, "
            f"got num_hops of {[e.num_hops for e in checkpoint.experts]}."
        )


def _outcomes(experts, params, batch: Batch, owned):
    """Predictions of the experts and the mixture, and the frames in the cheap one's domain."""
    first, second = (predict(e, p, batch) for e, p in zip(experts, params, strict=True))
    three = (first, second, mix(first, second, owned, batch))
    inside = frames_in_domain(rows_in_domain(experts[1], batch), batch)
    return [(p.atom_energies, p.forces, p.stress) for p in three], inside


def _outcome(prediction, rows: slice, position: int, frame: Frame) -> Outcome:
    energies, forces, stress = prediction
    periodic = bool(np.all(frame.pbc))
    return Outcome(
        float(np.sum(energies[rows], dtype=float)),
        np.asarray(forces[rows], float),
        np.asarray(stress[position], float) if periodic else None,
    )


def _of_frames(compared: Sequence[Compared]) -> dict:
    entry: dict = {"frames": len(compared)}
    for who in WHO:
        counted = [(c.frame, outcome) for c in compared if (outcome := c.outcome(who)) is not None]
        energies = [(o.energy - f.energy) / len(f.symbols) for f, o in counted if f.energy is not None]
        forces = [o.forces - f.forces for f, o in counted if f.forces is not None]
        stress = [o.stress - f.stress for f, o in counted if f.stress is not None and o.stress is not None]
        entry[who] = {
            name: _score(differences, unit)
            for (name, unit), differences in zip(UNITS.items(), (energies, forces, stress))
        }
    return entry


def _of_atoms(compared: Sequence[Compared], chosen: Sequence[np.ndarray]) -> dict:
    entry: dict = {"atoms": int(sum(c.sum() for c in chosen))}
    for who in WHO:
        differences = [
            (outcome.forces - c.frame.forces)[pick]
            for c, pick in zip(compared, chosen)
            if c.frame.forces is not None and (outcome := c.outcome(who)) is not None
        ]
        entry[who] = _score(differences, UNITS["forces_meV_per_A"])
    return entry


def _score(differences: Sequence, unit: float) -> dict | None:
    """Root mean square and mean absolute value of all components."""
    values = np.concatenate([np.ravel(d) for d in differences]) if len(differences) else np.zeros(0)
    if len(values) == 0:
        return None
    rmse = float(unit * np.sqrt(np.mean(values**2)))
    return {"rmse": rmse, "mae": float(unit * np.mean(np.abs(values))), "count": len(values)}


def _mixed_and_expensive(compared: Sequence[Compared], chosen: Sequence[np.ndarray]) -> dict:
    labelled = [(c, pick) for c, pick in zip(compared, chosen) if c.frame.forces is not None]
    rmse = {}
    for who in ("expensive", "mixed"):
        score = _score([(getattr(c, who).forces - c.frame.forces)[pick] for c, pick in labelled], 1e3)
        rmse[who] = None if score is None else score["rmse"]
    change = _score([(c.mixed.forces - c.expensive.forces)[pick] for c, pick in zip(compared, chosen)], 1e3)
    return {
        "atoms": int(sum(pick.sum() for _, pick in labelled)),
        **rmse,
        "excess": None if rmse["mixed"] is None else rmse["mixed"] - rmse["expensive"],
        "change": None if change is None else change["rmse"],
    }


def _checked_owner(owner, frame: Frame, index: int) -> np.ndarray:
    owner = np.asarray(owner)
    if owner.shape != (len(frame.symbols),) or not np.isin(owner, (0, 1)).all():
        raise ValueError(
            f"rule must return 0 or 1 for each of the {len(frame.symbols)} atoms of frame {index}, "
            f"got shape {owner.shape} of {np.unique(owner)[:5].tolist()}."
        )
    return owner
