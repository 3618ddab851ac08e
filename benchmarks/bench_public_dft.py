"""Errors of a co-trained pair on public DFT frames, compared with PyTorch Allegro.

The frames are those of CO on Pt surfaces by V. Sumaria and P. Sautet (see the
docs/data.md), in one extended XYZ file whose `origin` names the
trajectory. They are not shipped: pass the file as `--data`.

The pair is co-trained for a number of steps. PyTorch Allegro (nequip-allegro 0.8.3)
with the architecture of the expensive expert is then trained on the same batches in
the same order, with the same loss, learning rate and schedule, by Adam. Its budget is
the processor time of co-training, compilation included; the number of frames that each
was trained on is reported as well. Without torch in this Python, only moe_md is reported.

In the mixture the cheap expert owns every atom without C or O within its cutoff, as in
training.

Split: all frames of a trajectory are on one side. Origins form families, by the first
three folders of their name. An origin that contains several trajectories is divided by
surface cell, the first two lattice vectors, which do not change in a trajectory. In each
family, groups are visited in a pseudo-random order from name and seed, and a group is
held out if that brings the family closer to the held-out fraction of frames. The seed was
chosen before any training, for many surface cells among the held-out frames. Held-out
frames decide nothing else: there is no early stopping.

Cleaning: frames with a force above `--max-force` are dropped on both sides. Forces on
atoms of fixed layers are those of DFT, and are used.
"""

import argparse
import hashlib
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from itertools import islice
from typing import NamedTuple

import harness
import jax
import numpy as np
from ase.build import bulk
from torch_peer import HAS_PEER, PEER, peer_predictions, torch_allegro, train_peer

import moe_md as mm
from moe_md.analysis.expert_boundary import ghost_force_report
from moe_md.data import (
    Batch,
    Dataset,
    Frame,
    collate,
    dataset_from_frames,
    force_rms,
    load_dataset,
    prepare,
    reference_energies,
    summary,
)
from moe_md.data.batching import frame_rows
from moe_md.settings import TrainSettings
from moe_md.training.inputs import labelled_batches
from moe_md.training.losses import mix, predict, rows_in_domain

SPECIES, METAL = ("Pt", "C", "O"), "Pt"
ROW_STEP = 64  # the number of rows of a held-out frame is rounded up to a multiple of this


# The data


def clean(dataset: Dataset, max_force: float) -> Dataset:
    """Frames with energy and forces, none above `max_force`; kind is the family, group the trajectory."""
    kept = []
    for frame in dataset.frames:
        labelled = frame.energy is not None and frame.forces is not None
        if labelled and np.linalg.norm(frame.forces, axis=1).max() <= max_force:
            family = "/".join(frame.group.split("/")[:3])
            kept.append(frame._replace(kind=family, group=f"{frame.group} {surface_cell(frame)}"))
    return dataset_from_frames(kept, dataset.species)


def surface_cell(frame: Frame) -> str:
    """The first two lattice vectors: lengths and the angle between them, rounded."""
    a, b = frame.cell[:2]
    lengths = np.linalg.norm(a), np.linalg.norm(b)
    angle = np.degrees(np.arccos(np.clip(a @ b / (lengths[0] * lengths[1]), -1.0, 1.0)))
    return f"{lengths[0]:.1f}x{lengths[1]:.1f}x{angle:.0f}"


def split(dataset: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """Train and held-out frames: whole groups, about the fraction `share` of every family held out."""
    sizes: dict[str, dict[str, int]] = {}
    for frame in dataset.frames:
        family = sizes.setdefault(frame.kind, {})
        family[frame.group] = family.get(frame.group, 0) + 1
    held_out = set()
    for family in sizes.values():
        target, count = share * sum(family.values()), 0
        for group in sorted(family, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest()):
            if abs(count + family[group] - target) < abs(count - target):
                held_out.add(group)
                count += family[group]
    train = tuple(f for f in dataset.frames if f.group not in held_out)
    rest = tuple(f for f in dataset.frames if f.group in held_out)
    if not train or not rest:
        raise ValueError(
            f"data must have groups to train on and to hold out, got {len(train)} and {len(rest)} frames."
        )
    return Dataset(train, dataset.species), Dataset(rest, dataset.species)


def group_sizes(dataset: Dataset) -> dict[str, int]:
    """Number of frames of each group."""
    names = [frame.group for frame in dataset.frames]
    return {name: names.count(name) for name in sorted(set(names))}


# The pair


def two_experts(arguments, avg_num_neighbors: float) -> tuple:
    """A pair of the widths in `arguments`."""
    width = (arguments.scalar_features,)
    expensive = mm.experts.allegro(
        SPECIES,
        arguments.cutoff,
        l_max=arguments.l_max,
        num_layers=arguments.layers,
        num_scalar_features=arguments.scalar_features,
        num_tensor_features=arguments.tensor_features,
        scalar_embed_mlp=width,
        allegro_mlp=width,
        avg_num_neighbors=avg_num_neighbors,
    )
    cheap = mm.experts.power_spectrum(
        SPECIES,
        arguments.cutoff,
        allowed_species=(METAL,),
        l_max=arguments.cheap_l_max,
        num_channels=arguments.cheap_channels,
        hidden=(arguments.cheap_hidden, arguments.cheap_hidden),
        avg_num_neighbors=avg_num_neighbors,
    )
    return expensive, cheap


def our_predictions(experts, params) -> Callable[[Batch], dict]:
    """Function of a batch: energy and forces of expensive expert and mixture, and the cheap expert's rows."""

    @jax.jit
    def on_batch(batch: Batch) -> dict:
        expensive, cheap = (predict(e, p, batch) for e, p in zip(experts, params))
        rows = rows_in_domain(experts[1], batch)
        parts = {"expensive": expensive, "mixture": mix(expensive, cheap, ~rows, batch)}
        return {name: (p.energy, p.forces) for name, p in parts.items()} | {"cheap_rows": rows}

    return on_batch


# Errors


class Errors(NamedTuple):
    """Errors of a model in one frame."""

    energy: float  # eV/atom
    forces: np.ndarray  # [n, 3] eV/Å


def errors_of(predict_fn: Callable[[Batch], dict], frames: Sequence[Frame], cutoff: float) -> dict[str, list]:
    """Errors of each model in the result of `predict_fn`, frame by frame; masks are returned unchanged."""
    found: dict[str, list] = {}
    for frame in frames:
        n = len(frame.symbols)
        rows = frame_rows(frame, SPECIES, cutoff)
        padded = dict(n_rows=-(-n // ROW_STEP) * ROW_STEP, max_neighbors=-(-rows.mask.shape[1] // 16) * 16)
        out = predict_fn(collate([frame], SPECIES, cutoff, cached_rows=[rows], **padded))
        for name, value in out.items():
            if isinstance(value, tuple):
                energy, forces = (np.asarray(x, float) for x in value)
                value = Errors((energy[0] - frame.energy) / n, forces[:n] - frame.forces)
            else:
                value = np.asarray(value)[:n]
            found.setdefault(name, []).append(value)
    return found


def errors_of_references(frames: Sequence[Frame], references: dict) -> list[Errors]:
    """Errors of reference energies and zero forces: the size of the labels."""
    energies = [sum(references[s] for s in f.symbols) for f in frames]
    return [Errors((e - f.energy) / len(f.symbols), -f.forces) for e, f in zip(energies, frames)]


def score(errors: list[Errors], frames: Sequence[Frame], cheap_rows: list[np.ndarray]) -> dict:
    """Root mean square errors of all frames, by species and family, and of the cheap expert's atoms."""
    forces = np.concatenate([e.forces for e in errors])
    symbols = np.array([s for f in frames for s in f.symbols])
    families = np.array([f.kind for f in frames])
    atom_families = np.repeat(families, [len(f.symbols) for f in frames])
    energies = np.array([e.energy for e in errors])
    cheap = np.concatenate(cheap_rows)
    return {
        "energy_meV_per_atom": rms(energies),
        "forces_meV_per_A": rms(forces),
        "forces_mae_meV_per_A": 1e3 * float(np.mean(np.abs(forces))),
        "by_species": {s: rms(forces[symbols == s]) for s in SPECIES},
        "cheap_atoms": rms(forces[cheap]),
        "by_family": {
            name: {
                "energy_meV_per_atom": rms(energies[families == name]),
                "forces_meV_per_A": rms(forces[atom_families == name]),
            }
            for name in sorted({f.kind for f in frames})
        },
    }


def rms(values: np.ndarray) -> float | None:
    """Root mean square times a thousand; None without values."""
    return 1e3 * float(np.sqrt(np.mean(values**2))) if values.size else None


# The benchmark


def measure(arguments) -> dict:
    """The record of one run, a line of `results/public_dft.jsonl`."""
    environment = harness.environment()  # at the start, as the checkout may change in an hour
    all_frames = load_dataset(arguments.data, SPECIES)
    dataset = clean(all_frames, arguments.max_force)
    train, held_out = split(dataset, arguments.held_out, arguments.seed)
    prepared = prepare(train, arguments.cutoff)
    neighbors = round(float(np.mean(np.concatenate([rows.mask.sum(axis=1) for rows in prepared.rows]))), 1)
    experts = two_experts(arguments, neighbors)
    settings = TrainSettings(
        steps=arguments.steps,
        max_atoms=arguments.max_atoms,
        force_downweight_above=1e3,  # equal weights of all frames, as in the peer's loss
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
        save_every=arguments.steps,
    )
    print(f"{len(train.frames)} frames to train on, {len(held_out.frames)} held out", flush=True)
    print(group_sizes(held_out), flush=True)
    references = reference_energies(train)
    frames, cutoff = held_out.frames, arguments.cutoff

    started = time.process_time(), time.monotonic()
    crystal = bulk(METAL, a=arguments.lattice_constant)
    model = mm.cotrain(experts, train, settings, references=[crystal], progress=not arguments.smoke)
    spent = {"cpu_s": time.process_time() - started[0], "wall_s": time.monotonic() - started[1]}
    seen = islice(labelled_batches(prepared, settings, 0), settings.steps)
    frames_seen = sum(int(np.sum(batch.n_atoms > 0)) for batch in seen)
    budgets = {"ours": {"steps": settings.steps, "frames_seen": frames_seen, **spent}}
    errors = errors_of(our_predictions(experts, model.params), frames, cutoff)
    cheap_rows = errors.pop("cheap_rows")
    errors["nothing"] = errors_of_references(frames, references)
    print(budgets["ours"], {name: score(e, frames, cheap_rows) for name, e in errors.items()}, flush=True)
    if HAS_PEER:
        peer = torch_allegro(experts[0], force_rms(train), references, arguments.seed)
        started = time.monotonic()
        budgets["peer"] = train_peer(
            peer, labelled_batches(prepared, settings, 0), settings, budgets["ours"]["cpu_s"]
        )
        budgets["peer"]["wall_s"] = time.monotonic() - started
        errors |= errors_of(peer_predictions(peer), frames, cutoff)
    else:
        print("torch, nequip and nequip-allegro are not installed: no peer", flush=True)
    return {
        "benchmark": "public_dft",
        **environment,
        "smoke": arguments.smoke,
        "experts": [e.config for e in experts],
        "dtype": "float32",
        "dropped": len(all_frames.frames) - len(dataset.frames),
        "max_force": arguments.max_force,
        "seed": arguments.seed,
        "train": summary(train),
        "held_out": summary(held_out),
        "held_out_groups": group_sizes(held_out),
        "cheap_share": float(np.mean(np.concatenate(cheap_rows))),
        "ghost_force_meV_per_A": ghost_force_report(model, crystal),
        "peer": f"{PEER} {metadata.version(PEER)}" if HAS_PEER else None,
        "budgets": budgets,
        "scores": {name: score(e, frames, cheap_rows) for name, e in errors.items()},
    }


def report(record: dict) -> str:
    """The result as text."""
    lines = [f"{record['cheap_share']:.0%} of held-out atoms on the cheap expert"]
    for name, spent in record["budgets"].items():
        lines.append(f"{name}: {spent['steps']} steps, {spent['frames_seen']} frames, {spent['cpu_s']:.0f} s")
    for name, s in record["scores"].items():
        species = ", ".join(f"{k} {v:.0f}" for k, v in s["by_species"].items() if v is not None)
        lines.append(
            f"{name:9s}: {s['energy_meV_per_atom']:6.1f} meV/atom, {s['forces_meV_per_A']:6.1f} meV/Å "
            f"(mean absolute {s['forces_mae_meV_per_A']:.1f}; {species})"
        )
    return "\n".join([*lines, f"largest ghost force {record['ghost_force_meV_per_A']['worst']:.1f} meV/Å"])


def main(arguments: Sequence[str] | None = None) -> None:
    defaults = TrainSettings()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="extended XYZ file of the public frames")
    parser.add_argument(
        "--steps", type=int, default=3000, help="steps of co-training; the peer gets the same processor time"
    )
    parser.add_argument("--seed", type=int, default=3, help="seed of the split and of training")
    parser.add_argument("--held-out", type=float, default=0.2, help="fraction of frames to hold out")
    parser.add_argument(
        "--max-force", type=float, default=20.0, help="eV/Å; frames with a longer force are dropped"
    )
    parser.add_argument(
        "--max-atoms", type=int, default=104, help="atoms per batch; a larger frame is a batch of its own"
    )
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    parser.add_argument(
        "--lattice-constant", type=float, default=3.98, help="Å; that of the slabs is 3.97 or 3.99"
    )
    parser.add_argument("--cutoff", type=float, default=5.0, help="Å, of both experts")
    parser.add_argument("--l-max", type=int, default=2)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--scalar-features", type=int, default=32)
    parser.add_argument("--tensor-features", type=int, default=16)
    parser.add_argument("--cheap-l-max", type=int, default=4)
    parser.add_argument("--cheap-channels", type=int, default=16)
    parser.add_argument("--cheap-hidden", type=int, default=64)
    parser.add_argument("--results", default=harness.RESULTS, help="folder of the JSON lines")
    parser.add_argument("--smoke", action="store_true", help="a tiny pair, a few steps")
    arguments = parser.parse_args(arguments)
    if arguments.smoke:
        tiny = dict(steps=2, l_max=1, scalar_features=8, tensor_features=4, cutoff=4.0)
        tiny |= dict(cheap_l_max=1, cheap_channels=4, cheap_hidden=8)
        vars(arguments).update(tiny)
    record = measure(arguments)
    print(report(record), flush=True)
    harness.append(arguments.results, "public_dft", record)


if __name__ == "__main__":
    main()
