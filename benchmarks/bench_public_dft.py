"""How good is a co-trained pair on public DFT frames, beside PyTorch Allegro?

The frames are those of CO on Pt surfaces by V. Sumaria and P. Sautet (see the
README's section on data), as one extended XYZ file whose `origin` names the
trajectory. They are not shipped: `--data` says where they are.

The pair is co-trained for a number of steps. PyTorch Allegro (nequip-allegro
0.8.3) of the expensive expert's architecture is then trained on the same
batches in the same order with the same loss, learning rate and schedule, by Adam,
for as many seconds of processor time as co-training took, compilation included. That is the
budget; how many frames each saw is reported beside it. Without torch in this
Python ours is reported alone.

In the mixture the cheap expert owns every atom that sees no C and no O within
its cutoff, as in training.

Split: every frame of a trajectory is on one side. Origins are of a family (the
first three folders of their name), and one that collects trajectories is cut by
surface cell, its first two lattice vectors, which a trajectory keeps. In each
family groups are visited in an order drawn from name and seed; one is held out if
that brings the family nearer to the held-out share of frames. The seed was chosen
before any training, for many surface cells on the held-out side. Nothing else is
chosen by the held-out frames: there is no early stopping.

Cleaning: frames with a force above `--max-force` are dropped, on both sides. The
forces of frozen layers are what DFT says of them, and stay.
"""

import argparse
import hashlib
import importlib.util
import math
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from itertools import islice
from typing import NamedTuple

import harness
import jax
import numpy as np

import moe_md as mm
from moe_md.analysis.expert_boundary import ghost_force_report
from moe_md.data import (
    Batch,
    Dataset,
    Frame,
    batches,
    collate,
    dataset_from_frames,
    force_rms,
    load_dataset,
    prepare,
    reference_energies,
    summary,
)
from moe_md.data.batching import frame_rows
from moe_md.experts import Expert
from moe_md.settings import TrainSettings
from moe_md.training.losses import mix, predict, rows_in_domain

SPECIES, METAL = ("Pt", "C", "O"), "Pt"
PEER = "nequip-allegro"
HAS_PEER = all(importlib.util.find_spec(name) for name in ("torch", "nequip", "allegro"))
ROW_STEP = 64  # rows of a held-out frame are rounded up to this


# The data


def clean(dataset: Dataset, max_force: float) -> Dataset:
    """Frames with energy and forces, no force longer than `max_force`, with their family and trajectory."""
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
    """Train and held-out frames: whole groups, near `share` of the frames of every family."""
    sizes: dict[str, dict[str, int]] = {}
    for frame in dataset.frames:
        family = sizes.setdefault(frame.kind, {})
        family[frame.group] = family.get(frame.group, 0) + 1
    held_out = set()
    for family in sizes.values():
        wanted, have = share * sum(family.values()), 0
        for group in sorted(family, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest()):
            if abs(have + family[group] - wanted) < abs(have - wanted):
                held_out.add(group)
                have += family[group]
    train = tuple(f for f in dataset.frames if f.group not in held_out)
    rest = tuple(f for f in dataset.frames if f.group in held_out)
    if not train or not rest:
        raise ValueError(f"data must have groups for both sides, got {len(train)} and {len(rest)} frames.")
    return Dataset(train, dataset.species), Dataset(rest, dataset.species)


def group_sizes(dataset: Dataset) -> dict[str, int]:
    """Frames of each group."""
    names = [frame.group for frame in dataset.frames]
    return {name: names.count(name) for name in sorted(set(names))}


# Ours


def two_experts(arguments, avg_num_neighbors: float) -> tuple:
    """A pair small enough for one core."""
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
    """Energy and forces of the expensive expert and of the mixture, and the rows on the cheap one."""

    @jax.jit
    def on_batch(batch: Batch) -> dict:
        expensive, cheap = (predict(e, p, batch) for e, p in zip(experts, params))
        rows = rows_in_domain(experts[1], batch)
        parts = {"expensive": expensive, "mixture": mix(expensive, cheap, ~rows, batch)}
        return {name: (p.energy, p.forces) for name, p in parts.items()} | {"cheap_rows": rows}

    return on_batch


# The peer


def torch_allegro(expert: Expert, scale: float, references: dict, seed: int, *, compile_mode: str = "eager"):
    """PyTorch Allegro of an expert's architecture, in float32; `compile_mode` as nequip has it.

    Raises:
        ValueError: its parameters have other shapes than the expert's.
    """
    import torch
    from allegro.model import AllegroModel
    from nequip.utils.global_state import global_state_initialized, set_global_state

    from moe_md.interfaces.torch_allegro import from_module

    if not global_state_initialized():
        set_global_state()
    c = expert.config
    widths = {}
    for mlp in ("scalar_embed_mlp", "allegro_mlp", "readout_mlp"):
        widths |= {f"{mlp}_hidden_layers_width": c[mlp][0], f"{mlp}_hidden_layers_depth": len(c[mlp])}
    same = (
        "l_max",
        "parity",
        "num_layers",
        "num_scalar_features",
        "num_tensor_features",
        "avg_num_neighbors",
    )
    model = AllegroModel(
        seed=seed,
        compile_mode=compile_mode,
        model_dtype="float32",
        type_names=list(c["species"]),
        r_max=c["cutoff"],
        radial_chemical_embed={
            "_target_": "allegro.nn.TwoBodyBesselScalarEmbed",
            "num_bessels": c["num_bessels"],
        },
        per_type_energy_scales=scale,
        per_type_energy_shifts=references,
        **{name: c[name] for name in same},
        **widths,
    )
    ours, theirs = expert.init(jax.random.key(0)), from_module(model)[1]
    if jax.tree.map(np.shape, ours) != jax.tree.map(np.shape, theirs):
        raise ValueError("the peer must have the expert's architecture, got parameters of other shapes.")
    torch.set_num_threads(harness.environment()["cores"])
    return model


def torch_input(batch: Batch) -> dict:
    """A batch's real frames as graphs: all atoms at the origin, edges as shifts of a unit cell."""
    import torch

    center, slot = np.nonzero(batch.rows.mask)
    n, n_atoms = (
        int(batch.row_mask.sum()),
        batch.n_atoms[batch.n_atoms > 0],
    )  # real rows and frames come first
    return {
        "pos": torch.zeros(n, 3, dtype=torch.float64),  # as the reference has it, whatever the model's dtype
        "cell": torch.eye(3, dtype=torch.float64).repeat(len(n_atoms), 1, 1),
        "batch": torch.from_numpy(batch.frame[:n].astype(np.int64)),
        "num_atoms": torch.from_numpy(n_atoms.astype(np.int64)),
        "atom_types": torch.from_numpy(batch.rows.center_species[:n].astype(np.int64)),
        "edge_index": torch.from_numpy(
            np.stack([center, batch.rows.neighbor[center, slot]]).astype(np.int64)
        ),
        "edge_cell_shift": torch.from_numpy(batch.rows.displacement[center, slot].astype(np.float64)),
    }


def torch_predict(model, batch: Batch) -> tuple:
    """Energy of each frame and forces of each real row, as tensors."""
    import torch

    out = model(torch_input(batch))
    atom_energies = out["atomic_energy"][:, 0]
    frame = torch.from_numpy(batch.frame[: len(atom_energies)].astype(np.int64))
    energy = torch.zeros(len(batch.n_atoms), dtype=atom_energies.dtype).index_add(0, frame, atom_energies)
    return energy, out["forces"]


def torch_loss(model, batch: Batch, weights):
    """The library's data term for one expert."""
    import torch

    energy, forces = torch_predict(model, batch)
    real = torch.from_numpy(batch.n_atoms > 0)
    per_atom = (energy - torch.from_numpy(batch.energy))[real] / torch.from_numpy(batch.n_atoms)[real]
    force_error = forces - torch.from_numpy(batch.forces[: len(forces)])
    return weights.energy * (per_atom**2).mean() + weights.forces * (force_error**2).mean()


def train_peer(model, stream: Iterator[Batch], settings: TrainSettings, seconds: float) -> dict:
    """As co-training does, for a number of seconds of processor time;
    leaves averaged parameters in the model.
    """
    import torch

    parameters = [p for p in model.parameters() if p.requires_grad]
    average = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.Adam(parameters, lr=settings.learning_rate)
    model.train()
    step = frames = 0
    started = time.process_time()
    while (spent := time.process_time() - started) < seconds:
        batch = next(stream)
        optimizer.param_groups[0]["lr"] = learning_rate(settings, step, spent / seconds)
        optimizer.zero_grad()
        loss = torch_loss(model, batch, settings.weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
        optimizer.step()
        decay = min(settings.ema_decay, (1.0 + step) / (10.0 + step))
        for mean, p in zip(average, parameters):
            mean.lerp_(p.detach(), 1.0 - decay)
        step, frames = step + 1, frames + int(np.sum(batch.n_atoms > 0))
        if step % 200 == 0:
            print(f"peer: step {step}, {spent:.0f} of {seconds:.0f} s, loss {loss.item():.4f}", flush=True)
    for mean, p in zip(average, parameters):
        p.data.copy_(mean)
    return {"steps": step, "frames_seen": frames, "cpu_s": time.process_time() - started}


def learning_rate(settings: TrainSettings, step: int, share: float) -> float:
    """Warm-up by steps, then the cosine of co-training, over the share of the budget spent."""
    warmup = min(1.0, step / max(min(settings.warmup_steps, settings.steps // 2), 1))
    low = settings.final_learning_rate
    return (
        settings.learning_rate
        * warmup
        * (low + (1.0 - low) * 0.5 * (1.0 + math.cos(math.pi * min(share, 1.0))))
    )


def labelled(train, settings: TrainSettings) -> Iterator[Batch]:
    """Batches without end, those of co-training."""
    epoch = 0
    while True:
        yield from batches(
            train, max_atoms=settings.max_atoms, rng=np.random.default_rng([settings.seed, 0, epoch])
        )
        epoch += 1


def peer_predictions(model) -> Callable[[Batch], dict]:
    model.eval()

    def on_batch(batch: Batch) -> dict:
        energy, forces = torch_predict(model, batch)
        return {"peer": (energy.detach().numpy(), forces.detach().numpy())}

    return on_batch


# Errors


class Errors(NamedTuple):
    """What a model gets wrong in one frame."""

    energy: float  # eV/atom
    forces: np.ndarray  # [n, 3] eV/Å


def errors_of(predict_fn: Callable[[Batch], dict], frames: Sequence[Frame], cutoff: float) -> dict[str, list]:
    """Errors of each model that `predict_fn` speaks of, frame by frame; masks are passed on."""
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


def errors_of_nothing(frames: Sequence[Frame], references: dict) -> list[Errors]:
    """Of a model without forces and with energies by composition alone: the size of the labels."""
    energies = [sum(references[s] for s in f.symbols) for f in frames]
    return [Errors((e - f.energy) / len(f.symbols), -f.forces) for e, f in zip(energies, frames)]


def score(errors: list[Errors], frames: Sequence[Frame], cheap_rows: list[np.ndarray]) -> dict:
    """Errors over all frames, by species,
    by family and on the atoms that the mixture gives to the cheap expert.
    """
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
    """Root mean square times a thousand; None of nothing."""
    return 1e3 * float(np.sqrt(np.mean(values**2))) if values.size else None


# The benchmark


def measure(arguments) -> dict:
    """Everything a line of the results says."""
    environment = harness.environment()  # of the start: the checkout may move on in an hour
    whole = load_dataset(arguments.data, SPECIES)
    dataset = clean(whole, arguments.max_force)
    train, held_out = split(dataset, arguments.held_out, arguments.seed)
    prepared = prepare(train, arguments.cutoff)
    neighbors = round(float(np.mean(np.concatenate([rows.mask.sum(axis=1) for rows in prepared.rows]))), 1)
    experts = two_experts(arguments, neighbors)
    settings = TrainSettings(
        steps=arguments.steps,
        max_atoms=arguments.max_atoms,
        force_downweight_above=1e3,  # every frame weighs alike, as in the peer's loss
        learning_rate=arguments.learning_rate,
        lattice_constant=arguments.lattice_constant,
        metal=METAL,
        seed=arguments.seed,
        save_every=arguments.steps,
    )
    print(f"{len(train.frames)} frames to train on, {len(held_out.frames)} held out", flush=True)
    print(group_sizes(held_out), flush=True)
    references = reference_energies(train)
    frames, cutoff = held_out.frames, arguments.cutoff

    started = time.process_time(), time.monotonic()
    model = mm.cotrain(experts, train, settings, progress=not arguments.smoke)
    spent = {"cpu_s": time.process_time() - started[0], "wall_s": time.monotonic() - started[1]}
    seen = islice(labelled(prepared, settings), settings.steps)
    frames_seen = sum(int(np.sum(batch.n_atoms > 0)) for batch in seen)
    budgets = {"ours": {"steps": settings.steps, "frames_seen": frames_seen, **spent}}
    errors = errors_of(our_predictions(experts, model.params), frames, cutoff)
    cheap_rows = errors.pop("cheap_rows")
    errors["nothing"] = errors_of_nothing(frames, references)
    print(budgets["ours"], {name: score(e, frames, cheap_rows) for name, e in errors.items()}, flush=True)
    if HAS_PEER:
        peer = torch_allegro(experts[0], force_rms(train), references, arguments.seed)
        started = time.monotonic()
        budgets["peer"] = train_peer(peer, labelled(prepared, settings), settings, budgets["ours"]["cpu_s"])
        budgets["peer"]["wall_s"] = time.monotonic() - started
        errors |= errors_of(peer_predictions(peer), frames, cutoff)
    else:
        print("no torch, nequip and nequip-allegro in this Python: no peer", flush=True)
    return {
        "benchmark": "public_dft",
        **environment,
        "smoke": arguments.smoke,
        "experts": [e.config for e in experts],
        "dtype": "float32",
        "dropped": len(whole.frames) - len(dataset.frames),
        "max_force": arguments.max_force,
        "seed": arguments.seed,
        "train": summary(train),
        "held_out": summary(held_out),
        "held_out_groups": group_sizes(held_out),
        "cheap_share": float(np.mean(np.concatenate(cheap_rows))),
        "ghost_force_meV_per_A": ghost_force_report(model, [arguments.lattice_constant], symbol=METAL),
        "peer": f"{PEER} {metadata.version(PEER)}" if HAS_PEER else None,
        "budgets": budgets,
        "scores": {name: score(e, frames, cheap_rows) for name, e in errors.items()},
    }


def report(record: dict) -> str:
    """The result, for people."""
    lines = [f"{record['cheap_share']:.0%} of held-out atoms on the cheap expert"]
    for name, spent in record["budgets"].items():
        lines.append(f"{name}: {spent['steps']} steps, {spent['frames_seen']} frames, {spent['cpu_s']:.0f} s")
    for name, s in record["scores"].items():
        species = ", ".join(f"{k} {v:.0f}" for k, v in s["by_species"].items() if v is not None)
        lines.append(
            f"{name:9s}: {s['energy_meV_per_atom']:6.1f} meV/atom, {s['forces_meV_per_A']:6.1f} meV/Å "
            f"(mean absolute {s['forces_mae_meV_per_A']:.1f}; {species})"
        )
    return "\n".join([*lines, f"ghost force, at worst {record['ghost_force_meV_per_A']['worst']:.1f} meV/Å"])


def main(arguments: Sequence[str] | None = None) -> None:
    defaults = TrainSettings()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="extended XYZ file of the public frames")
    parser.add_argument(
        "--steps", type=int, default=3000, help="of co-training; the peer gets the same processor time"
    )
    parser.add_argument("--seed", type=int, default=3, help="of the split and of training")
    parser.add_argument("--held-out", type=float, default=0.2, help="share of frames")
    parser.add_argument(
        "--max-force", type=float, default=20.0, help="eV/Å; frames with a longer force are dropped"
    )
    parser.add_argument(
        "--max-atoms", type=int, default=104, help="atoms per batch; a larger frame is a batch"
    )
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    parser.add_argument(
        "--lattice-constant", type=float, default=3.98, help="Å; the frames' slabs have 3.97 and 3.99"
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
