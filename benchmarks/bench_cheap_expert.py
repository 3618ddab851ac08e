"""Which cheap expert fits data best, in a given time?

    python benchmarks/bench_cheap_expert.py --data silicon-train.xyz --test silicon-test.xyz [--seconds 60]

Each expert is fitted alone, to energies, forces and stresses, for the same processor time (compiling
not counted), with one schedule. Groups of frames are held out for validation. The cost of a step of
dynamics is that of `bench_mixture.py`; here stands the time of a training step.
"""

import argparse
import time
from collections.abc import Sequence
from functools import partial
from itertools import count
from pathlib import Path

import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax

from moe_md.data import PACKAGED, Dataset, batches, load_dataset, prepare, split_by_group
from moe_md.experts import Expert, density_moments, power_spectrum
from moe_md.settings import LossWeights, TrainSettings
from moe_md.training.inputs import labelled_batches
from moe_md.training.losses import errors, predict
from moe_md.training.parameters import initial_params
from moe_md.training.soap import scale_by_soap
from moe_md.training.step import COMPUTED

CUTOFF = 5.0  # Å
EXPERTS = {
    "power_spectrum": partial(power_spectrum, l_max=4),
    "density_moments": density_moments,
    "density_moments, zbl": partial(density_moments, zbl=True),
    "density_moments (8, 2, 2), zbl": partial(
        density_moments, num_radial=(8, 2, 2), hidden=(32, 32), zbl=True
    ),
    "density_moments (8, 4, 4, 3), zbl": partial(density_moments, num_radial=(8, 4, 4, 3), zbl=True),
    "density_moments (8, 4, 4), zbl, 2 mixtures of species": partial(
        density_moments, num_radial=(8, 4, 4), num_species_mixtures=2, zbl=True
    ),
}
WARMUP, LEAST = 100, 0.01  # steps of warm-up, and the last learning rate over the largest
DECAY = 0.999  # of the average of parameters


def fit(expert: Expert, train: Dataset, settings: TrainSettings, seconds: float):
    """Averaged parameters after so many seconds of processor time, and the number of steps."""
    prepared = prepare(train, expert.cutoff)
    (params,) = initial_params((expert,), train, settings, prepared)
    computed = {name: params.pop(name) for name in COMPUTED if name in params}
    optimizer = optax.chain(optax.clip_by_global_norm(settings.clip_norm), scale_by_soap())

    def loss(params, batch):
        e = errors(predict(expert, {**params, **computed}, batch), batch, batch.n_atoms > 0)
        weights = settings.weights
        return weights.energy * e.energy + weights.forces * e.forces + weights.stress * e.stress

    @jax.jit
    def step(params, average, state, batch, rate, decay):
        update, state = optimizer.update(jax.grad(loss)(params, batch), state, params)
        params = jax.tree.map(lambda p, u: p - rate * u, params, update)
        return params, jax.tree.map(lambda a, p: a + (1 - decay) * (p - a), average, params), state

    carry = params, params, optimizer.init(params)
    for batch in batches(prepared, max_atoms=settings.max_atoms):  # all shapes are compiled
        jax.block_until_ready(step(*carry, batch, 0.0, 1.0))
    began = time.process_time()
    for n, batch in zip(count(), labelled_batches(prepared, settings, 0)):
        share = (time.process_time() - began) / seconds
        if share >= 1.0:
            return {**carry[1], **computed}, n
        cosine = LEAST + (1 - LEAST) * 0.5 * (1 + np.cos(np.pi * share))
        rate = settings.learning_rate * min(1.0, (n + 1) / WARMUP) * cosine
        carry = step(*carry, batch, rate, min(DECAY, (1 + n) / (10 + n)))
    raise AssertionError("batches end")


def scores(expert: Expert, params, dataset: Dataset, max_atoms: int) -> dict[str, float]:
    """Root mean square errors: energy in meV/atom, forces in meV/Å."""

    @jax.jit
    def of_batch(batch):
        return errors(predict(expert, params, batch), batch, batch.n_atoms > 0)

    found = [of_batch(batch) for batch in batches(prepare(dataset, expert.cutoff), max_atoms=max_atoms)]
    counts = np.array([e.count[:2] for e in found], float)
    squares = np.array([[e.energy, e.forces] for e in found], float)
    energy, forces = 1e3 * np.sqrt((squares * counts).sum(0) / np.maximum(counts.sum(0), 1))
    return {"energy_meV_per_atom": float(energy), "forces_meV_per_A": float(forces)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="labelled frames, a file or the name of packaged ones")
    parser.add_argument("--test", help="further frames, for errors only")
    parser.add_argument("--name", help="of the data in the table; default the file's")
    parser.add_argument("--experts", nargs="+", default=list(EXPERTS), choices=EXPERTS)
    parser.add_argument("--seconds", type=float, default=60.0, help="of processor time, for each expert")
    parser.add_argument("--max-atoms", type=int, default=256, help="of a batch")
    parser.add_argument("--validation-fraction", type=float, default=0.15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", default=harness.RESULTS, help="folder of the JSON lines")
    parser.add_argument("--smoke", action="store_true", help="few frames, one second for each expert")
    arguments = parser.parse_args(arguments)
    data = load_dataset(PACKAGED[arguments.data]() if arguments.data in PACKAGED else arguments.data)
    if arguments.smoke:
        arguments.seconds = 1.0
        data = data._replace(frames=data.frames[:: max(1, len(data.frames) // 24)])
    train, validation = split_by_group(
        data, validation_fraction=arguments.validation_fraction, seed=arguments.seed
    )
    settings = TrainSettings(
        max_atoms=arguments.max_atoms, seed=arguments.seed, force_downweight_above=5.0, weights=LossWeights()
    )
    parts = {"train": train, "validation": validation}
    if arguments.test:
        parts["test"] = load_dataset(arguments.test, train.species)
    rows = []
    for name in arguments.experts:
        expert = EXPERTS[name](train.species, CUTOFF)
        params, n_steps = fit(expert, train, settings, arguments.seconds)
        params = jax.tree.map(jnp.asarray, params)
        rows.append(
            {
                "expert": name,
                "config": expert.config,
                "steps": n_steps,
                "step_ms": 1e3 * arguments.seconds / max(n_steps, 1),
                **{part: scores(expert, params, data, arguments.max_atoms) for part, data in parts.items()},
            }
        )
        of_forces = ", ".join(f"{part} {rows[-1][part]['forces_meV_per_A']:.0f}" for part in parts)
        of_step = f"{n_steps} steps of {rows[-1]['step_ms']:.1f} ms"
        print(f"{name}: {of_step}; forces, meV/Å: {of_forces}", flush=True)
    record = {
        "benchmark": "cheap_expert",
        **harness.environment(),
        "smoke": arguments.smoke,
        "dtype": "float32",
        "name": arguments.name or Path(arguments.data).name,
        "seconds": arguments.seconds,
        "seed": arguments.seed,
        "rows": rows,
    }
    harness.append(arguments.results, "cheap_expert", record)


if __name__ == "__main__":
    main()
