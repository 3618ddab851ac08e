"""Errors on labelled frames: of each expert, and of the mixture with a region.

    by kind of frame                    energy, forces, stress
    by species, environment             forces
    by distance to the expert boundary  forces, beside the expensive expert's on the same atoms

The cheap expert is scored in its domain, as in the loss: forces of atoms, energies and
stresses of frames that are entirely in it. The mixture is scored on frames in which both
experts own atoms. The expensive expert is also scored on these frames alone
(`expensive_where_mixed`). Root mean squares are over components (nine of a stress), as in
training. A missing label is left out.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from moe_md.analysis.environments import ENVIRONMENTS, Rule, boundary_distance
from moe_md.checkpoint import Checkpoint
from moe_md.data.batching import Batch, pack_batch, packs, prepare
from moe_md.data.dataset import Dataset, dataset_from_frames
from moe_md.data.reading import Frame
from moe_md.experts.base import check_two_experts
from moe_md.renamed import missing_attribute
from moe_md.training.evaluation import QUANTITIES
from moe_md.training.losses import forces_in_domain, frames_in_domain, mix, predict, rows_in_domain

POTENTIALS = ("expensive", "cheap", "mixed", "expensive_where_mixed")
UNITS = QUANTITIES["expensive"]  # from eV and Å to the unit in each key


class FramePrediction(NamedTuple):
    """Prediction of one potential for one frame."""

    energy: float  # eV
    forces: Float[np.ndarray, "atoms 3"]  # eV/Å
    stress: Float[np.ndarray, "3 3"] | None  # eV/Å^3; None where the frame is not fully periodic


class ComparedFrame(NamedTuple):
    """A labelled frame with the predictions of both experts and of their mixture."""

    frame: Frame
    owner: Int[np.ndarray, " atoms"]  # 0 for the expensive expert
    in_domain: bool  # the entire frame is in the cheap expert's domain
    forces_in_domain: Bool[np.ndarray, " atoms"]  # the cheap expert's force is that of rows in its domain
    expensive: FramePrediction
    cheap: FramePrediction
    mixed: FramePrediction

    @property
    def has_expert_boundary(self) -> bool:
        """Whether both experts own atoms."""
        return bool(np.ptp(self.owner))

    def prediction(self, potential: str) -> FramePrediction | None:
        """Prediction of one of `POTENTIALS`; None where this frame is not scored for it."""
        scored = {"expensive": True, "cheap": self.in_domain}.get(potential, self.has_expert_boundary)
        return getattr(self, potential.removesuffix("_where_mixed")) if scored else None

    def force_difference(
        self, potential: str
    ) -> tuple[Float[np.ndarray, "atoms 3"], Bool[np.ndarray, " atoms"]]:
        """Forces of one of `POTENTIALS` less the labels, eV/Å, and the atoms that are scored for it."""
        scored = np.full(len(self.owner), potential == "expensive" or self.has_expert_boundary)
        if potential == "cheap":
            scored = self.forces_in_domain
        assert self.frame.forces is not None
        return getattr(self, potential.removesuffix("_where_mixed")).forces - self.frame.forces, scored


def compare(
    checkpoint: Checkpoint, dataset: Dataset, rule: Rule, *, max_atoms: int = 64, dtype=np.float32
) -> list[ComparedFrame]:
    """Evaluate both experts and their mixture on every frame.

    Args:
        checkpoint: two experts that pass no messages, the expensive one first.
        dataset: frames; labels may be missing.
        rule: assigns each atom of a frame to an expert.
        max_atoms: atoms per batch; a larger frame gets a batch of its own.
        dtype: of the computation. Energies of atoms are added up in float64.

    Returns:
        One entry per frame, in their order.

    Raises:
        ValueError: the checkpoint does not hold two such experts, there is no
            frame, or a species is unknown.
    """
    check_two_experts(checkpoint.experts, "experts of the checkpoint", strictly_local=True)
    dataset = dataset_from_frames(dataset.frames, checkpoint.experts[0].species)
    prepared = prepare(dataset, max(e.cutoff for e in checkpoint.experts), dtype=dtype)
    owners = [_checked_owner(rule(frame), frame, k) for k, frame in enumerate(dataset.frames)]
    predict_fn = jax.jit(partial(_predictions, checkpoint.experts))
    compared: dict[int, ComparedFrame] = {}
    for shape, pack in packs(prepared, max_atoms=max_atoms):
        batch = pack_batch(prepared, shape, pack)
        on_expensive = np.concatenate([owners[k] for k in pack]) == 0
        owned = np.zeros(shape.n_rows, bool)
        owned[: len(on_expensive)] = on_expensive
        predictions, *domain = jax.device_get(predict_fn(tuple(checkpoint.params), batch, owned))
        start = 0
        for position, k in enumerate(pack):
            frame = dataset.frames[k]
            rows = slice(start, start + len(frame.symbols))
            of_frame = (_frame_prediction(p, rows, position, frame) for p in predictions)
            in_domain, of_atoms = bool(domain[0][position]), domain[1][rows]
            compared[k] = ComparedFrame(frame, owners[k], in_domain, of_atoms, *of_frame)
            start = rows.stop
    return [compared[k] for k in range(len(dataset.frames))]


def report(
    compared: Sequence[ComparedFrame], environment_fn: Callable[[Frame], Shaped[np.ndarray, " atoms"]]
) -> dict:
    """Errors as a dictionary that JSON can store.

    Args:
        compared: from `compare`.
        environment_fn: returns the environment of each atom of a frame.

    Returns:
        `"all"` and each entry of `"kinds"` hold `frames` and, for each of
        `POTENTIALS`, `energy_meV_per_atom`, `forces_meV_per_A` and `stress_GPa`.
        Each entry of `"species"` and `"environments"` holds `atoms` and, for each of
        `POTENTIALS`, the error of the forces. An error is
        `{"rmse", "mae", "count"}`, `count` being the number of values averaged;
        None where there is none. `"expert_boundary"`: see `boundary_report`.
    """
    environment = [environment_fn(c.frame) for c in compared]
    symbols = [np.array(c.frame.symbols) for c in compared]
    names = [c.frame.kind or "unnamed" for c in compared]
    kinds = {
        kind: _frame_errors([c for c, name in zip(compared, names) if name == kind])
        for kind in sorted(set(names))
    }
    species = sorted({s for c in compared for s in c.frame.symbols})
    return {
        "all": _frame_errors(compared),
        "kinds": kinds,
        "species": {s: _force_errors(compared, [x == s for x in symbols]) for s in species},
        "environments": {
            name: _force_errors(compared, [x == name for x in environment]) for name in ENVIRONMENTS
        },
        "expert_boundary": boundary_report(compared),
    }


def boundary_report(
    compared: Sequence[ComparedFrame], *, width: float = 1.0, max_distance: float = 12.0
) -> dict:
    """Forces of the mixture beside those of the expensive expert, on the same atoms.

    Args:
        compared: from `compare`; frames without an expert boundary are left out.
        width: Å, width of a bin of the distance to the boundary (`boundary_distance`).
        max_distance: Å, atoms farther than this from the boundary are in no bin.

    Returns:
        `frames`, the number of frames with an expert boundary, and `atoms` in them;
        `"all"`, `"inside"` and `"outside"` the region; and a list `"bins"` with
        their limits `"from"` and `"to"` (Å, negative outside). Each of these
        holds `atoms` (labelled ones), the root mean square errors `expensive` and
        `mixed` against the labels, `excess` = mixed - expensive, and `change`, the
        root mean square difference between the forces of the two potentials, which
        needs no labels; meV/Å, None where there is no value.
    """
    compared = [c for c in compared if c.has_expert_boundary]
    distance = [boundary_distance(c.frame, c.owner, max_distance=max_distance) for c in compared]
    edges = width * np.arange(np.floor(-max_distance / width), np.ceil(max_distance / width) + 1)
    bins = []
    for low, high in pairwise(edges):
        # A distance is never zero. Each bin is closed at the edge farther from zero, open at the other.
        selected = [(d >= low) & (d < high) if high <= 0 else (d > low) & (d <= high) for d in distance]
        if any(s.any() for s in selected):
            bins.append({"from": float(low), "to": float(high), **_mixed_and_expensive(compared, selected)})
    return {
        "frames": len(compared),
        "atoms": sum(len(d) for d in distance),
        "all": _mixed_and_expensive(compared, [np.ones(len(d), bool) for d in distance]),
        "inside": _mixed_and_expensive(compared, [d > 0 for d in distance]),
        "outside": _mixed_and_expensive(compared, [d < 0 for d in distance]),
        "bins": bins,
    }


def _predictions(experts, params, batch: Batch, owned):
    """Predictions of both experts and the mixture; what of the batch is in the cheap expert's domain."""
    first, second = (predict(e, p, batch) for e, p in zip(experts, params, strict=True))
    three = (first, second, mix(first, second, owned, batch))
    rows = rows_in_domain(experts[1], batch)
    domain = frames_in_domain(rows, batch), forces_in_domain(experts[1], rows, batch)
    return [(p.atom_energies, p.forces, p.stress) for p in three], *domain


def _frame_prediction(prediction, rows: slice, position: int, frame: Frame) -> FramePrediction:
    """The part of a batch's prediction that belongs to the frame at `position`, whose atoms are `rows`."""
    energies, forces, stress = prediction
    periodic = bool(np.all(frame.pbc))
    return FramePrediction(
        float(np.sum(energies[rows], dtype=float)),
        np.asarray(forces[rows], float),
        np.asarray(stress[position], float) if periodic else None,
    )


def _frame_errors(compared: Sequence[ComparedFrame]) -> dict:
    """Errors of energy, forces and stress of each potential, over some frames."""
    entry: dict = {"frames": len(compared)}
    for name in POTENTIALS:
        scored = [(c.frame, p) for c in compared if (p := c.prediction(name)) is not None]
        energies = [(p.energy - f.energy) / len(f.symbols) for f, p in scored if f.energy is not None]
        forces = [d[atoms] for d, atoms in _force_differences(compared, name)]
        stress = [p.stress - f.stress for f, p in scored if f.stress is not None and p.stress is not None]
        entry[name] = {
            quantity: _score(differences, unit)
            for (quantity, unit), differences in zip(UNITS.items(), (energies, forces, stress))
        }
    return entry


def _force_errors(compared: Sequence[ComparedFrame], selected: Sequence[np.ndarray]) -> dict:
    """Errors of the forces of each potential on selected atoms, `[n_atoms]` bool for each frame."""
    entry: dict = {"atoms": int(sum(s.sum() for s in selected))}
    for name in POTENTIALS:
        labelled = [pick for c, pick in zip(compared, selected) if c.frame.forces is not None]
        found = zip(_force_differences(compared, name), labelled, strict=True)
        differences = [difference[atoms & pick] for (difference, atoms), pick in found]
        entry[name] = _score(differences, UNITS["forces_meV_per_A"])
    return entry


def _force_differences(compared: Sequence[ComparedFrame], name: str) -> list:
    """`force_difference` of each frame with forces."""
    return [c.force_difference(name) for c in compared if c.frame.forces is not None]


def _score(differences: Sequence, unit: float) -> dict | None:
    """Root mean square and mean absolute value of all components."""
    values = np.concatenate([np.ravel(d) for d in differences]) if len(differences) else np.zeros(0)
    if len(values) == 0:
        return None
    rmse = float(unit * np.sqrt(np.mean(values**2)))
    return {"rmse": rmse, "mae": float(unit * np.mean(np.abs(values))), "count": len(values)}


def _mixed_and_expensive(compared: Sequence[ComparedFrame], selected: Sequence[np.ndarray]) -> dict:
    """One entry of `boundary_report`, over selected atoms, `[n_atoms]` bool for each frame."""
    labelled = [(c, pick) for c, pick in zip(compared, selected) if c.frame.forces is not None]
    rmse = {}
    for name in ("expensive", "mixed"):
        score = _score([(getattr(c, name).forces - c.frame.forces)[pick] for c, pick in labelled], 1e3)
        rmse[name] = None if score is None else score["rmse"]
    change = _score([(c.mixed.forces - c.expensive.forces)[pick] for c, pick in zip(compared, selected)], 1e3)
    return {
        "atoms": int(sum(pick.sum() for _, pick in labelled)),
        **rmse,
        "excess": None if rmse["mixed"] is None else rmse["mixed"] - rmse["expensive"],
        "change": None if change is None else change["rmse"],
    }


def _checked_owner(owner, frame: Frame, index: int) -> np.ndarray:
    """The owners that a rule returned for a frame; raises `ValueError` where they are not valid."""
    owner = np.asarray(owner)
    if owner.shape != (len(frame.symbols),) or not np.isin(owner, (0, 1)).all():
        raise ValueError(
            f"rule must return 0 or 1 for each of the {len(frame.symbols)} atoms of frame {index}, "
            f"got shape {owner.shape} of {np.unique(owner)[:5].tolist()}."
        )
    return owner


def __getattr__(name: str):
    raise missing_attribute(__name__, name)
