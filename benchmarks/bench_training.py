"""Training throughput in frames per second, compared with PyTorch Allegro.

All programs train on the same batches of the shipped `ptco_fm` frames with the same
architecture: energies and forces, the data term of the loss, its clipped gradient, and
one step of Adam, from random parameters. PyTorch Allegro (nequip-allegro 0.8.3) runs in
eager mode and as compiled by nequip. Co-training is timed as well: both experts, their
agreement on unlabelled metal environments, and the optimiser of `moe_md.cotrain`.

The first round compiles. Co-training has batches of its own, and repeats rounds until
one compiles nothing. Then programs run in turn, one round of batches each. Without torch
in this Python, only moe_md is timed.
"""

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice

import harness
import jax
import numpy as np
import optax
from bench_public_dft import SPECIES
from peers_torch import inductor_settings
from torch_peer import HAS_PEER, PEER, torch_allegro, torch_loss

import moe_md as mm
from moe_md.data import Batch, batches, load_dataset, prepare, ptco_fm, reference_energies
from moe_md.settings import EnvironmentSettings, TrainSettings
from moe_md.training.inputs import environments_of, training_inputs
from moe_md.training.losses import errors, predict
from moe_md.training.parameters import initial_params
from moe_md.training.step import (
    hyperparameters,
    initial_state,
    learning_rates,
    step_config,
    training_step,
)

LEARNING_RATE = 1e-3


def count_frames(batches_: Iterable[Batch]) -> int:
    """Number of frames in batches."""
    return sum(int(np.sum(batch.n_atoms > 0)) for batch in batches_)


def ours(
    expert, params, batches_: Sequence[Batch], settings: TrainSettings
) -> Callable[[], tuple[float, int]]:
    """A round of the expensive expert alone, which returns its last loss and the number of frames."""
    optimizer = optax.chain(optax.clip_by_global_norm(settings.clip_norm), optax.adam(LEARNING_RATE))

    def loss_fn(params, batch):
        e = errors(predict(expert, params, batch), batch, batch.n_atoms > 0)
        return settings.weights.energy * e.energy + settings.weights.forces * e.forces

    @jax.jit
    def step(params, state, batch):
        loss, gradient = jax.value_and_grad(loss_fn)(params, batch)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    carry = [params, optimizer.init(params)]

    def round_() -> tuple[float, int]:
        for batch in batches_:
            *carry[:], loss = step(*carry, batch)
        return float(loss), count_frames(batches_)

    return round_


def cotrained(
    experts, dataset, prepared, n_batches: int, settings: TrainSettings
) -> Callable[[], tuple[float, int]]:
    """A round of the training step of `moe_md.cotrain`; batches are made within it, as in `cotrain`."""
    config = step_config(experts, settings)
    step = jax.jit(partial(training_step, config))
    numbers = hyperparameters(settings, learning_rates(settings), 0)
    environments = environments_of(mm.load("ptco").references, experts, EnvironmentSettings())
    inputs = training_inputs(environments, prepared, settings, 0)
    state = initial_state(config, initial_params(experts, dataset, settings, prepared))

    def round_() -> tuple[float, int]:
        nonlocal state
        pairs = list(islice(inputs, n_batches))
        for labelled, unlabelled in pairs:
            state, terms = step(numbers, state, labelled, unlabelled)
        return float(terms.expensive.forces), count_frames(labelled for labelled, _ in pairs)

    n_programs = -1
    while step._cache_size() > n_programs:  # until a round compiles nothing
        n_programs = step._cache_size()
        round_()
    return round_


def peer(
    expert, batches_: Sequence[Batch], dataset, settings: TrainSettings, compile_mode: str
) -> Callable[[], tuple[float, int]]:
    """A round of PyTorch Allegro, as `ours`."""
    import torch

    model = torch_allegro(expert, 1.0, reference_energies(dataset), settings.seed, compile_mode=compile_mode)
    parameters = [p for p in model.parameters() if p.requires_grad]
    inductor_settings()
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE)
    model.train()

    def round_() -> tuple[float, int]:
        for batch in batches_:
            optimizer.zero_grad()
            loss = torch_loss(model, batch, settings.weights)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
            optimizer.step()
        return loss.item(), count_frames(batches_)

    return round_


def timed(rounds: dict[str, Callable[[], tuple[float, int]]], repeats: int) -> tuple[dict, dict]:
    """Time per frame of each program, s, and the error of each PyTorch program that failed."""
    seconds, left_out = {}, {}
    for name, round_ in rounds.items():
        started = time.perf_counter()
        try:
            loss, _ = round_()
        except Exception as error:  # the compiler of PyTorch may fail on this machine
            if "PyTorch" not in name:
                raise
            left_out[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
            print(f"{name}: left out, {left_out[name]}", flush=True)
            continue
        if not np.isfinite(loss):
            raise RuntimeError(f"{name}: the loss must be finite, got {loss}.")
        seconds[name] = []
        print(f"{name}: first round in {time.perf_counter() - started:.1f} s", flush=True)
    for _ in range(repeats):
        for name in seconds:
            started = time.perf_counter()
            _, frames = rounds[name]()
            seconds[name].append((time.perf_counter() - started) / frames)
    return {name: harness.timing(values) for name, values in seconds.items()}, left_out


def measure(arguments) -> dict:
    """The record of one run, a line of `results/training.jsonl`."""
    model = harness.two_experts("ptco", random=not arguments.tiny, tiny=arguments.tiny)
    expert, params = model.experts[0], model.params[0]
    settings = TrainSettings(steps=10_000, max_atoms=arguments.max_atoms)
    dataset = load_dataset(ptco_fm(), SPECIES)
    prepared = prepare(dataset, expert.cutoff)
    stream = batches(prepared, max_atoms=settings.max_atoms, rng=np.random.default_rng(0))
    # nequip does not compile the program for a batch of one frame.
    some = list(islice((batch for batch in stream if np.sum(batch.n_atoms > 0) > 1), arguments.batches))
    rounds = {"Allegro, moe_md": ours(expert, params, some, settings)}
    if HAS_PEER:
        rounds["Allegro, PyTorch eager"] = peer(expert, some, dataset, settings, "eager")
        rounds["Allegro, PyTorch compiled"] = peer(expert, some, dataset, settings, "compile")
    rounds["co-training, moe_md"] = cotrained(model.experts, dataset, prepared, arguments.batches, settings)
    timings, left_out = timed(rounds, arguments.repeats)
    best = timings["Allegro, moe_md"].median
    return {
        "benchmark": "training",
        **harness.environment(),
        "smoke": arguments.smoke,
        "data": "ptco_fm",
        "frames": count_frames(some),
        "atoms": sum(int(batch.row_mask.sum()) for batch in some),
        "batches": arguments.batches,
        "max_atoms": settings.max_atoms,
        "repeats": arguments.repeats,
        "experts": [e.config for e in model.experts],
        "dtype": "float32",
        "peer": PEER if HAS_PEER else None,
        "left_out": left_out,
        "rows": [
            {
                "name": name,
                "s_per_frame": t.median,
                "quartiles_s": [t.lower, t.upper],
                "over_ours": t.median / best,
            }
            for name, t in timings.items()
        ],
    }


def describe(record: dict) -> str:
    """The result as text."""
    lines = [
        f"{record['frames']} frames, {record['atoms']} atoms in {record['batches']} batches of at "
        f"most {record['max_atoms']} atoms"
    ]
    for row in record["rows"]:
        low, high = (1 / t for t in row["quartiles_s"][::-1])
        lines.append(
            f"{row['name']:26s} {1 / row['s_per_frame']:8.1f} frames/s ({low:.1f} to {high:.1f}), "
            f"{row['over_ours']:.2f} times the time of moe_md's Allegro alone"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", type=int, default=12, help="batches of a round")
    parser.add_argument(
        "--max-atoms", type=int, default=128, help="atoms per batch; large batches favour PyTorch"
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--tiny", action="store_true", help="tiny experts")
    parser.add_argument("--results", default=harness.RESULTS, help="folder of the JSON lines")
    parser.add_argument("--smoke", action="store_true", help="tiny experts, two batches, two rounds")
    arguments = parser.parse_args(arguments)
    if arguments.smoke:
        vars(arguments).update(batches=2, repeats=2, tiny=True)
    record = measure(arguments)
    print(describe(record))
    harness.append(arguments.results, "training", record)


if __name__ == "__main__":
    main()
