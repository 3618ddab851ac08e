"""How many frames a second does training take, beside PyTorch Allegro?

The same batches of the shipped `ptco_fm` frames through the same architecture:
energies and forces, the library's data term, its gradient, clipped, and one step of
Adam. PyTorch Allegro (nequip-allegro 0.8.3) runs as it stands and as nequip compiles a
model to be trained; its parameters are random, ours too. Co-training is timed
beside them: both experts, their agreement on metal environments made on
the fly, and the optimiser of `moe_md.cotrain`.

Each program takes all batches once to compile, co-training, which meets its own,
as many rounds as compile anything, then in turn, a round of batches each. Without torch in this Python ours
is timed alone.
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
from bench_public_dft import HAS_PEER, PEER, SPECIES, torch_allegro, torch_loss
from peers_torch import inductor_settings

from moe_md.data import Batch, batches, load_dataset, prepare, ptco_fm, reference_energies
from moe_md.settings import TrainSettings
from moe_md.training import cotrain as training
from moe_md.training.losses import errors, predict
from moe_md.training.soap import scale_by_soap

LEARNING_RATE = 1e-3


def count(some: Iterable[Batch]) -> int:
    """Frames of batches."""
    return sum(int(np.sum(batch.n_atoms > 0)) for batch in some)


def ours(
    expert, params, batches_: Sequence[Batch], settings: TrainSettings
) -> Callable[[], tuple[float, int]]:
    """One round of the expensive expert alone: its last loss, and how many frames."""
    optimizer = optax.chain(optax.clip_by_global_norm(settings.clip_norm), optax.adam(LEARNING_RATE))

    def loss_fn(params, batch):
        e = errors(predict(expert, params, batch), batch, batch.n_atoms > 0)
        return settings.weights.energy * e.energy + settings.weights.forces * e.forces

    @jax.jit
    def step(params, state, batch):
        loss, gradient = jax.value_and_grad(loss_fn)(params, batch)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    held = [params, optimizer.init(params)]

    def round_() -> tuple[float, int]:
        for batch in batches_:
            *held[:], loss = step(*held, batch)
        return float(loss), count(batches_)

    return round_


def cotrained(
    experts, dataset, prepared, n_batches: int, settings: TrainSettings
) -> Callable[[], tuple[float, int]]:
    """One round of `moe_md.cotrain`, its batches made while it runs, as it does."""
    optimizer = optax.chain(optax.clip_by_global_norm(settings.clip_norm), scale_by_soap())
    step = jax.jit(partial(training._step, experts, optimizer, None, None))
    knobs = training._knobs(settings)
    inputs = training._inputs(experts, prepared, settings, 0)
    params = training._initial_params(experts, dataset, settings)
    held = [training.State(np.asarray(0), params, params, optimizer.init(params))]

    def round_() -> tuple[float, int]:
        seen = list(islice(inputs, n_batches))
        for batch in seen:
            held[0], terms = step(knobs(0), held[0], *batch)
        return float(terms.expensive.forces), count(labelled for labelled, _ in seen)

    known = -1
    while step._cache_size() > known:  # shapes are few
        known = step._cache_size()
        round_()
    return round_


def peer(
    expert, batches_: Sequence[Batch], dataset, settings: TrainSettings, compile_mode: str
) -> Callable[[], tuple[float, int]]:
    """One round of PyTorch Allegro."""
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
        return loss.item(), count(batches_)

    return round_


def measure(arguments) -> dict:
    """Everything a line of the results says."""
    model = harness.two_experts("ptco", random=not arguments.tiny, tiny=arguments.tiny)
    expert, params = model.experts[0], model.params[0]
    settings = TrainSettings(steps=10_000, max_atoms=arguments.max_atoms, lattice_constant=3.977)
    dataset = load_dataset(ptco_fm(), SPECIES)
    prepared = prepare(dataset, expert.cutoff)
    stream = batches(prepared, max_atoms=settings.max_atoms, rng=np.random.default_rng(0))
    # nequip runs a frame alone as it stands, not compiled.
    some = list(islice((batch for batch in stream if np.sum(batch.n_atoms > 0) > 1), arguments.batches))
    rounds = {"Allegro, moe_md": ours(expert, params, some, settings)}
    if HAS_PEER:
        rounds["Allegro, PyTorch eager"] = peer(expert, some, dataset, settings, "eager")
        rounds["Allegro, PyTorch compiled"] = peer(expert, some, dataset, settings, "compile")
    rounds["co-training, moe_md"] = cotrained(model.experts, dataset, prepared, arguments.batches, settings)
    seconds, left_out = {}, {}
    for name, round_ in rounds.items():
        started = time.perf_counter()
        try:
            loss, _ = round_()
        except Exception as error:  # a peer's compiler may not like this machine
            if "PyTorch" not in name:
                raise
            left_out[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
            print(f"{name}: left out, {left_out[name]}", flush=True)
            continue
        if not np.isfinite(loss):
            raise RuntimeError(f"{name}: its loss is {loss}; its time means nothing.")
        seconds[name] = []
        print(f"{name}: first round in {time.perf_counter() - started:.1f} s", flush=True)
    for _ in range(arguments.repeats):
        for name in seconds:
            started = time.perf_counter()
            _, frames = rounds[name]()
            seconds[name].append((time.perf_counter() - started) / frames)
    timings = {name: harness.timing(values) for name, values in seconds.items()}
    best = timings["Allegro, moe_md"].median
    return {
        "benchmark": "training",
        **harness.environment(),
        "smoke": arguments.smoke,
        "data": "ptco_fm",
        "frames": count(some),
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
    """The result, for people."""
    lines = [
        f"{record['frames']} frames, {record['atoms']} atoms in {record['batches']} batches of at "
        f"most {record['max_atoms']} atoms"
    ]
    for row in record["rows"]:
        low, high = (1 / t for t in row["quartiles_s"][::-1])
        lines.append(
            f"{row['name']:26s} {1 / row['s_per_frame']:8.1f} frames/s ({low:.1f} to {high:.1f}), "
            f"{row['over_ours']:.2f} times the time of our Allegro alone"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", type=int, default=12, help="of a round")
    parser.add_argument(
        "--max-atoms", type=int, default=128, help="atoms per batch: many, in the peer's favour"
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
