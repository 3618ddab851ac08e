"""Multiple time steps: how far apart may the expensive expert's forces be, and what is gained?

    python benchmarks/bench_respa.py [--inner-potential NAME or FILE] [--parts conservation speed] [--smoke]

The inner potential, a small power spectrum that knows C and O, is packaged; a file that is
not there yet is made: an inner potential trained on what the expensive expert says of
frames of `ptco_fm`. It gives the forces between two of the expensive expert's. The cheap
expert, to which C and O are invisible, serves as an inner potential for comparison: then
the C-O bond, whose period is 16 fs, is among the slow forces.

    conservation   CO on Pt(111), a ball about it on the expensive expert, float64, constant energy
                   (a line of results for each run)
    speed          a crystal, the highest atoms on the expensive expert, float32; bound: with f the share
                   and r the ratio of costs, (f + (1 - f) / r) / (1 / r + f / k) over steps of one force
"""

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import harness
import jax
import jax.numpy as jnp
import numpy as np
from bench_mixture import SYMBOL, crystal, upper_share
from bench_moving import CHUNK_FS, LATTICE, R_BLEND, terrace
from jax_md import space

import moe_md as mm
from moe_md import checkpoint, experts, simulate
from moe_md.analysis.environments import near_other_species
from moe_md.analysis.errors import compare
from moe_md.data.dataset import dataset_from_frames
from moe_md.reporters.trajectory import drift
from moe_md.settings import EnvironmentSettings, LossWeights, TrainSettings
from moe_md.simulate.advance import advance_chunk

GUIDE = {
    "builder": "power_spectrum",
    "cutoff": 5.0,
    "l_max": 3,
    "num_channels": 12,
    "hidden": [32, 32],
    "avg_num_neighbors": 40.0,
}
LONE = {
    "builder": "power_spectrum",
    "cutoff": 3.0,
    "l_max": 0,
    "num_channels": 1,
    "num_bessels": 2,
    "hidden": [2],
}  # `cotrain` wants two
EVERY = (1, 2, 3, 4, 5, 6, 8)


def trained_inner_potential(arguments) -> mm.Checkpoint:
    """An inner potential for the checkpoint's expensive expert."""
    if not (path := Path(arguments.inner_potential)).suffix or path.exists():
        return mm.load(arguments.inner_potential)
    model = mm.load(arguments.checkpoint)
    species = model.experts[0].species
    frames = [f for f in mm.data.read_frames(mm.data.ptco_fm()) if len(f.symbols) <= 40][
        :: 40 if arguments.smoke else 2
    ]
    rule = near_other_species(model.experts[1].allowed_species, model.experts[1].cutoff)
    said = [c.expensive for c in compare(model, dataset_from_frames(frames, species), rule)]
    frames = [f._replace(energy=o.energy, forces=o.forces, stress=o.stress) for f, o in zip(frames, said)]
    pair = (
        experts.build({**GUIDE, "species": species}),
        experts.build({**LONE, "species": species, "allowed_species": ("Pt",)}),
    )
    alone = LossWeights(agree_energy=0.0, agree_partial_forces=0.0, agree_stress=0.0, mixed=0.0)
    settings = TrainSettings(
        steps=20 if arguments.smoke else arguments.guide_steps,
        weights=alone,
        max_atoms=64,
    )
    no_environments = EnvironmentSettings(environment_rows=0, perfect_rows=0)
    trained = mm.cotrain(pair, dataset_from_frames(frames, species), settings, environments=no_environments)
    inner_potential = trained._replace(experts=trained.experts[:1], params=trained.params[:1])
    checkpoint.save(path, inner_potential)
    return inner_potential


def conservation(model, inner_potentials: dict, arguments) -> Iterator[dict]:
    """Runs from one start, for each inner potential and number of inner steps; yields each as it ends."""
    atoms = terrace(tuple(arguments.size), 1)
    box, known = atoms.cell.lengths(), model.experts[0].species
    species = np.array([known.index(s) for s in atoms.symbols])
    carbon, oxygen = (int(np.flatnonzero(atoms.numbers == n)[0]) for n in (6, 8))
    region = mm.regions.around([carbon, oxygen], model.experts[1].cutoff, R_BLEND)
    displacement_fn, shift_fn = space.periodic(jnp.asarray(box))
    warm = None
    for name, inner_potential in inner_potentials.items():
        fns = mm.mixture_neighbor_list(
            displacement_fn,
            box,
            model.potentials,
            species,
            region,
            inner_potential=inner_potential,
        )
        if warm is None:
            nve = simulate.nve(shift_fn, 1.0)
            start = simulate.start(
                nve,
                jnp.asarray(atoms.positions),
                masses=atoms.get_masses(),
                temperature_K=2 * arguments.temperature_K,
                key=jax.random.key(0),
            )
            warm = simulate.run(*fns, nve, start, n_steps=arguments.warmup).state
        for every in arguments.every:
            bonds: list[float] = []

            def look(frame: simulate.Frame, bonds: list[float] = bonds) -> None:
                apart = frame.position[carbon] - frame.position[oxygen]
                bonds.append(float(np.linalg.norm(apart - box * np.round(apart / box))))

            chunk = max(1, round(min(CHUNK_FS, 40 * arguments.ps) / every)) * every  # at least 25 frames
            steps = -(-round(1e3 * arguments.ps) // chunk) * chunk
            row = {
                "inner_potential": name,
                "outer_every": every,
                "ps": 1e-3 * steps,
                "n_atoms": len(atoms),
                "failed": True,
            }
            try:
                result = simulate.run(
                    *fns,
                    simulate.respa(simulate.nve(shift_fn, 1.0), fns[0], every),
                    warm,
                    n_steps=steps,
                    chunk_steps=chunk,
                    reporters=[look],
                )
            except simulate.SimulationError:
                yield row
                continue
            line = drift(result.log.time_ps, result.log.total, len(atoms))
            rest = result.log.total - np.polyval(
                np.polyfit(result.log.time_ps, result.log.total, 1), result.log.time_ps
            )
            yield row | {
                "failed": False,
                "drift_meV_per_atom_per_ps": line.slope,
                "drift_stderr": line.standard_error,
                "fluctuation_meV": 1e3 * float(np.std(rest)),
                "temperature_K": float(np.mean(result.log.temperature_K)),
                "momentum": float(np.max(result.log.momentum)),
                "bond": [min(bonds), max(bonds)],
            }
            jax.clear_caches()  # each run is a program of its own; a process has only so many memory maps


def speed(model, inner_potential, arguments) -> dict:
    """Time per inner step beside its bound."""
    position, edges = crystal(arguments.atoms)
    species = np.full(len(position), model.experts[0].species.index(SYMBOL))
    displacement_fn, shift_fn = space.periodic(edges)
    build = partial(
        mm.mixture_neighbor_list, displacement_fn, edges, species=species, chunk_size=arguments.chunk_size
    )
    masses = np.full(len(position), 195.08)

    def case(fns, every: int) -> harness.Case:
        """`every` inner steps."""
        integrator = simulate.respa(simulate.nve(shift_fn, 1.0), fns[0], every)
        start = simulate.start(
            integrator, jnp.asarray(position), masses=masses, temperature_K=300.0, key=jax.random.key(0)
        )
        begun = simulate.run(*fns, integrator, start, n_steps=0)

        def advance(carry):
            # Without its own `jit`, whose compiler options only the outermost may have.
            chunk = advance_chunk.__wrapped__(fns[1], integrator, *carry, None, None, None, False, every)
            return chunk.state, chunk.neighbors

        return harness.Case(advance, (begun.state.dynamics, begun.neighbors))

    alone = mm.regions.fixed(np.zeros(len(position), int), n_experts=1)
    counts = {"all expensive": 1, "all cheap": 1}
    cases = {
        "all expensive": case(build(potentials=model.potentials[:1], region=alone), 1),
        "all cheap": case(build(potentials=model.potentials[1:], region=alone), 1),
    }
    for share in arguments.shares:
        fns = build(
            potentials=model.potentials,
            region=upper_share(position, share),
            inner_potential=inner_potential,
        )
        for every in arguments.speed_every:
            counts[f"{share:g}, {every}"] = every
            cases[f"{share:g}, {every}"] = case(fns, every)
            print(
                f"f = {share:g}, every {every}: "
                f"compiled in {cases[f'{share:g}, {every}'].compile_seconds:.0f} s",
                flush=True,
            )
    timings = harness.interleave(cases, repeats=arguments.repeats)
    for name, each in cases.items():
        state, neighbors = each.state
        if bool(neighbors.did_buffer_overflow) or not np.isfinite(np.asarray(state.force)).all():
            raise RuntimeError(f"{name}: lists overflowed or forces are not finite; its time means nothing.")
    per_step = {name: np.array([t.median, t.lower, t.upper]) / counts[name] for name, t in timings.items()}
    expensive, cheap = per_step["all expensive"][0], per_step["all cheap"][0]
    rows = []
    for share in arguments.shares:
        f, r = round(share * len(position)) / len(position), expensive / cheap
        for every in arguments.speed_every:
            spent = per_step[f"{share:g}, {every}"]
            gain = per_step[f"{share:g}, {arguments.speed_every[0]}"][0] / spent[0]
            bound = (f + (1 - f) / r) / (1 / r + f / every) if every > 1 else 1.0
            rows.append({
                "f": f,
                "outer_every": every,
                "median_s": spent[0],
                "quartiles_s": spent[1:].tolist(),
                "gain": gain,
                "bound": bound,
                "speedup": expensive / spent[0],
            })  # fmt: skip
            print(rows[-1], flush=True)
    return {"atoms": len(position), "repeats": arguments.repeats, "r": expensive / cheap,
            "expensive_s": expensive, "cheap_s": cheap, "rows": rows}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", default="ptco-small", help="name or path, for conservation")
    parser.add_argument("--speed-checkpoint", default="ptco", help="name or path, for speed")
    parser.add_argument(
        "--inner-potential",
        default="ptco-small-inner",
        help="name of the inner potential, or a file (.msgpack)",
    )
    parser.add_argument("--inner-steps", type=int, default=6000)
    parser.add_argument(
        "--parts", nargs="+", choices=("conservation", "speed"), default=("conservation", "speed")
    )
    parser.add_argument(
        "--every",
        type=int,
        nargs="+",
        default=EVERY,
        help="steps of 1 fs between forces of the expensive expert",
    )
    # Wider than twice the ball, or the weights of atoms between two images of it have a kink.
    parser.add_argument(
        "--size", type=int, nargs=3, default=(6, 8, 4), help="columns, rows (even), layers of Pt"
    )
    parser.add_argument("--ps", type=float, default=5.0)
    parser.add_argument("--warmup", type=int, default=500, help="steps")
    parser.add_argument("--temperature-K", type=float, default=500.0)
    parser.add_argument("--atoms", type=int, default=8064)
    parser.add_argument("--shares", type=float, nargs="+", default=(0.05, 0.25))
    parser.add_argument(
        "--speed-every",
        type=int,
        nargs="+",
        default=(1, 2, 3, 4),
        help="the first is what others are compared to",
    )
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--chunk-size", type=int, default=64, help="rows computed at a time")
    parser.add_argument("--results", default=harness.RESULTS, help="folder of the JSON lines")
    parser.add_argument(
        "--smoke", action="store_true", help="fs of a small slab, a few hundred atoms, two repeats"
    )
    arguments = parser.parse_args(arguments)
    if arguments.smoke:
        vars(arguments).update(
            ps=0.1,
            warmup=4,
            every=(4,),
            size=(6, 8, 3),
            atoms=256,
            shares=(0.25,),
            speed_every=(1, 2),
            repeats=2,
        )
    inner_potential = trained_inner_potential(arguments)
    record = {
        "benchmark": "respa",
        **harness.environment(),
        "smoke": arguments.smoke,
        "checkpoint": arguments.checkpoint,
        "speed_checkpoint": arguments.speed_checkpoint,
        "dtype": "float64 and float32",
        "lattice_constant": LATTICE,
        "inner_potential": inner_potential.experts[0].config,
    }
    if "conservation" in arguments.parts:
        model = mm.load(arguments.checkpoint)
        inner_potentials = {
            "inner_potential": (inner_potential.experts[0], inner_potential.params[0]),
            "cheap expert": (model.experts[1], model.params[1]),
        }
        if arguments.smoke:
            del inner_potentials["cheap expert"]
        with jax.enable_x64(True):
            for row in conservation(model, inner_potentials, arguments):
                print(row, flush=True)
                harness.append(arguments.results, "respa", {**record, "conservation": row})
    if "speed" in arguments.parts:
        timed = harness.two_experts(arguments.speed_checkpoint, tiny=arguments.smoke)
        timings = speed(timed, (inner_potential.experts[0], inner_potential.params[0]), arguments)
        harness.append(arguments.results, "respa", {**record, "speed": timings})


if __name__ == "__main__":
    main()
