"""How well does a cheap expert agree with a trained expensive one, at which cost?

    python benchmarks/bench_cheap_widths.py [--checkpoint ptco] [--data ptco_pbe] [--steps 4000]

Cheap experts of several widths are trained beside the expensive expert of a pair, which keeps its
parameters, as in `ptco/cheap.toml`, for the same number of steps. Written are the errors on the
validation frames, the differences of the experts there and the time of a step of dynamics of
`bench_mixture.py` in which every atom is on the cheap expert.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from functools import partial

import bench_mixture
import harness
import jax
import numpy as np

import moe_md as mm
from moe_md.commands import settings_file
from moe_md.data import PACKAGED, load_dataset, split_by_group
from moe_md.experts import Expert, density_moments, embedded_atom, power_spectrum
from moe_md.settings import TrainSettings

SETTINGS = harness.ROOT / "benchmarks/ptco/cheap.toml"
VALIDATION = 0.15  # share of the frames, as in `ptco/cheap.toml`
CUTOFF = 5.0  # Å
EXPERTS = {
    "power_spectrum": partial(power_spectrum, l_max=4),
    "density_moments (8); 32, 32": partial(density_moments, num_radial=(8,), hidden=(32, 32)),
    "density_moments (8, 2, 2); 32, 32": partial(density_moments, num_radial=(8, 2, 2), hidden=(32, 32)),
    "density_moments (8, 2, 2); 64, 64": partial(density_moments, num_radial=(8, 2, 2)),
    "density_moments (8, 4, 4); 64, 64": partial(density_moments, num_radial=(8, 4, 4)),
    "density_moments (8, 6, 6); 64, 64": density_moments,
    "density_moments (8, 4, 4, 3); 64, 64": partial(density_moments, num_radial=(8, 4, 4, 3)),
    "density_moments (8, 8, 8); 64, 64": partial(density_moments, num_radial=(8, 8, 8)),
}


def without_cheap(model: mm.Checkpoint) -> mm.Checkpoint:
    """The pair with a cheap expert that is none of `EXPERTS`, so that all of these start at random."""
    other = embedded_atom(model.experts[0].species, CUTOFF)
    return model._replace(
        experts=(model.experts[0], other), params=(model.params[0], other.init(jax.random.key(0)))
    )


def trained(model: mm.Checkpoint, cheap: Expert, parts, settings) -> tuple[mm.Checkpoint, float]:
    """The pair with this cheap expert, and the seconds of its training, compiling included."""
    train, validation = parts
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found = mm.cotrain(
            (model.experts[0], cheap),
            train,
            settings,
            validation=validation,
            start=model,
            folder=folder,
            progress=False,
        )
    return found, time.perf_counter() - began


def times_of_steps(experts: dict, symbol: str, n_atoms: int, repeats: int) -> dict[str, harness.Timing]:
    """Times of a step in which every atom is on one expert; `experts`: names to experts and parameters."""
    position, edges = bench_mixture.crystal(n_atoms)
    alone = mm.regions.fixed(np.zeros(len(position), int), n_experts=1)
    cases = {}
    for name, (cheap, params) in experts.items():
        species = np.full(len(position), cheap.species.index(symbol))
        cases[name] = bench_mixture.step_case(position, edges, (cheap,), (params,), species, alone, 64)
    return harness.interleave(cases, repeats=repeats)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", default="ptco", help="name or path of the pair")
    parser.add_argument("--data", default="ptco_pbe", choices=list(PACKAGED), help="labels of the pair")
    parser.add_argument("--experts", nargs="+", default=list(EXPERTS), choices=EXPERTS)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--atoms", type=int, default=8064)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--results", default=harness.RESULTS, help="folder of the JSON lines")
    parser.add_argument("--smoke", action="store_true", help="two steps, one expert, few atoms")
    arguments = parser.parse_args(arguments)
    if arguments.smoke:
        vars(arguments).update(steps=2, atoms=256, repeats=2, experts=arguments.experts[-1:])
    model = without_cheap(mm.load(arguments.checkpoint))
    expensive = model.experts[0]
    data = load_dataset(PACKAGED[arguments.data](), expensive.species)
    table = settings_file.tables(SETTINGS)["training"]
    table |= {"steps": arguments.steps, "validate_every": arguments.steps, "save_every": arguments.steps}
    settings = settings_file.filled(TrainSettings, table, "training")
    parts = split_by_group(data, validation_fraction=VALIDATION, seed=settings.seed)
    rows, experts = [], {}
    for name in arguments.experts:
        cheap = EXPERTS[name](expensive.species, CUTOFF, allowed_species=(bench_mixture.SYMBOL,))
        found, seconds = trained(model, cheap, parts, settings)
        params = found.params[1]
        experts[name] = cheap, params
        rows.append(
            {
                "expert": name,
                "config": cheap.config,
                "parameters": sum(int(np.size(x)) for x in jax.tree.leaves(params)),
                "training_s": seconds,
                "scores": found.record["history"][-1],
            }
        )
        print(f"{name}: {seconds:.0f} s, {rows[-1]['scores']}", flush=True)
    timings = times_of_steps(experts, bench_mixture.SYMBOL, arguments.atoms, arguments.repeats)
    for row in rows:
        row["us_per_atom"] = 1e6 * timings[row["expert"]].median / arguments.atoms
    record = {
        "benchmark": "cheap_widths",
        **harness.environment(),
        "smoke": arguments.smoke,
        "dtype": "float32",
        "checkpoint": arguments.checkpoint,
        "data": arguments.data,
        "steps": arguments.steps,
        "atoms": arguments.atoms,
        "rows": rows,
    }
    harness.append(arguments.results, "cheap_widths", record)


if __name__ == "__main__":
    main()
