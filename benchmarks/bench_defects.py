"""A vacancy in a crystal: its energy and the barrier of its jumps, and energy conservation while it moves.

    python benchmarks/bench_defects.py --checkpoint PAIR --symbol Si [--cells N] [--cores 1.5 3 5]
    python benchmarks/bench_defects.py --checkpoint PAIR --symbol Si --dynamics [--runs NAME ...]

PAIR is the name or path of a checkpoint that has a crystal of the element. The crystal is relaxed under the
expensive expert and keeps its lattice constant. A neighbour of the vacancy jumps into it: climbing-image
nudged elastic band of ASE. Potentials:

    expensive   all atoms on the expensive expert
    cheap       all atoms on the cheap expert
    grown C     `grown(region, C, blend)`: spheres around the atoms that have fewer or more neighbours than
                in the crystal (`--selection few`: only fewer; `unfamiliar`: environments unlike those
                that the experts were made to agree on)
    rims C      `around`: spheres around the neighbours of the vacancy before and after the jump

Each relaxes the two ends that the expensive expert found, and the band between them. For the energy of the
vacancy, each atom counts in the perfect crystal what its experts give it there. Forces are compared on the
images of the expensive expert's band after random displacements. Steps of dynamics are timed in a larger
crystal with one vacancy.

`--dynamics`: constant energy at a temperature at which the vacancy jumps, from one thermalised state. One
line of results per run:

    grown        `grown` with `--core`, float64, 1 fs
    half step    the same with 0.5 fs
    reassigned   the same region without a blend: atoms switch expert every 20 steps
"""

import argparse
import time
from collections.abc import Sequence

import defect_systems as systems
import harness
import numpy as np
from ase import Atoms
from defects_dynamics import RUNS, simulate_runs
from vacancy_jump import Band, Jump, band, relaxed_ends, vacancy_jump

import moe_md as mm
from moe_md.interfaces.ase import MixtureCalculator

HOT = 0.1  # Å, standard deviation of each coordinate of the structures on which forces are compared


def potentials_of(
    model: mm.Checkpoint, crystal: systems.Crystal, jump: Jump, arguments
) -> dict[str, tuple[float | None, object]]:
    """By name of the potential its core radius, and its region or the number of its expert."""
    selected = systems.SELECTIONS[arguments.selection](model, crystal, arguments.counted)
    return {
        "expensive": (None, 0),
        "cheap": (None, 1),
        **{
            f"grown {core:g}": (core, mm.regions.grown(selected, core, arguments.blend))
            for core in arguments.cores
        },
        **{
            f"rims {core:g}": (core, mm.regions.around(jump.rims, core, arguments.blend))
            for core in arguments.rim_cores
        },
    }


def measure(model: mm.Checkpoint, crystal: systems.Crystal, arguments) -> dict:
    """Energies, barriers and forces under all potentials."""
    perfect = systems.repeated(crystal.cell, 216, arguments.cells)
    jump = vacancy_jump(perfect, systems.RIM * crystal.shell)
    potentials = potentials_of(model, crystal, jump, arguments)
    ends = relaxed_ends(jump, lambda: MixtureCalculator(model, 0), arguments.fmax / 2, arguments.steps)
    bands: dict[str, Band] = {}
    rows = []
    for name, (core, region) in potentials.items():
        bands[name] = band(
            ends,
            lambda region=region: MixtureCalculator(model, region),
            arguments.images,
            arguments.fmax,
            arguments.steps,
        )
        rows.append(
            {"potential": name, "core": core, **of_band(model, crystal, bands[name], region)}
            | {"barrier_difference_meV": 1e3 * float(barrier(bands[name]) - barrier(bands["expensive"]))}
        )
        print(describe(rows[-1]), flush=True)
    forces = compared_forces(model, potentials, bands["expensive"].images, jump, arguments.calls)
    return {
        "atoms": len(jump.first),
        "images": arguments.images,
        "fmax": arguments.fmax,
        "rim_atoms": len(jump.rims),
        "dtype": "float64",
        "rows": [row | forces[row["potential"]] for row in rows],
    }


def barrier(found: Band) -> float:
    """eV, from the lowest image to the highest one: the vacancy may be split between two sites."""
    return float(np.ptp(found.energies))


def of_band(model: mm.Checkpoint, crystal: systems.Crystal, found: Band, region) -> dict:
    """Energy of the vacancy and barrier of its jump, and the share of atoms on the expensive expert."""
    gate = systems.gates(model, found.images, region)  # [n_images, n_atoms]
    experts = np.array(crystal.energies)
    in_crystal = gate[0].sum() * experts[0] + (1.0 - gate[0]).sum() * experts[1]
    share = (gate > 0).mean(axis=1)
    return {
        "vacancy_eV": float(found.energies[0] - in_crystal),
        "lowest_eV": float(found.energies.min() - found.energies[0]),  # of the path, from its first image
        "barrier_eV": barrier(found),
        "reaction_eV": float(found.energies[-1] - found.energies[0]),
        "path_eV": (found.energies - found.energies[0]).tolist(),
        "share": float(share.mean()),
        "share_range": [float(share.min()), float(share.max())],
        "converged": found.converged,
        "steps": found.steps,
        "seconds": found.seconds,
    }


def compared_forces(model, potentials: dict, images: list[Atoms], jump: Jump, calls: int) -> dict[str, dict]:
    """By potential: root mean square differences from the expensive forces, and seconds per call.

    Args:
        model: the experts.
        potentials: as `potentials_of` returns; the first one is the expensive expert.
        images: structures that are displaced at random.
        jump: for the atoms at the rim.
        calls: timed calls of each potential, in turn, on structures that hardly move.
    """
    rng = np.random.default_rng(0)
    hot = [image.copy() for image in images]
    for atoms in hot:
        atoms.positions += HOT * rng.standard_normal(atoms.positions.shape)
    calculators = {name: MixtureCalculator(model, region) for name, (_, region) in potentials.items()}
    forces = {name: np.array([calc.get_forces(atoms) for atoms in hot]) for name, calc in calculators.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calculators}
    atoms = hot[len(hot) // 2]
    for turn in range(-2, calls):
        atoms.positions += 1e-3 * rng.standard_normal(atoms.positions.shape)
        for name, calculator in calculators.items():
            began = time.perf_counter()
            calculator.get_forces(atoms)
            if turn >= 0:
                seconds[name].append(time.perf_counter() - began)
    exact = forces["expensive"]
    return {
        name: {
            "rim_meV_per_A": 1e3 * float(np.sqrt(np.mean((found - exact)[:, jump.rims] ** 2))),
            "everywhere_meV_per_A": 1e3 * float(np.sqrt(np.mean((found - exact) ** 2))),
            "call_s": harness.timing(seconds[name])._asdict(),
        }
        for name, found in forces.items()
    }


def speed(model: mm.Checkpoint, crystal: systems.Crystal, arguments) -> dict:
    """Steps of dynamics of a larger crystal with one vacancy."""
    perfect = systems.repeated(crystal.cell, 1500, arguments.speed_cells)
    jump = vacancy_jump(perfect, systems.RIM * crystal.shell)
    regions = {
        name: region
        for name, (_, region) in potentials_of(model, crystal, jump, arguments).items()
        if " " in name
    }
    if arguments.smoke:
        regions = dict(list(regions.items())[:1])
    rows = systems.timed_steps(model, jump.first, regions, arguments.repeats)
    return {"speed_atoms": len(jump.first), "speed_dtype": "float32", "speed": rows}


def describe(row: dict) -> str:
    """The energies of a potential as a line of text."""
    return (
        f"{row['potential']:12s} E_f {row['vacancy_eV']:.3f} eV, barrier {row['barrier_eV']:.3f} eV "
        f"({row['barrier_difference_meV']:+.1f} meV), reaction {row['reaction_eV']:+.4f} eV, "
        f"share {row['share']:.2f}, {row['steps']} steps, {row['seconds']:.0f} s"
        f"{'' if row['converged'] else ', not converged'}"
    )


def head(model: mm.Checkpoint, crystal: systems.Crystal, arguments) -> dict:
    """What all records hold."""
    a, b = crystal.energies
    return {
        "benchmark": "defects",
        **harness.environment(),
        "smoke": arguments.smoke,
        "checkpoint": systems.name_of(arguments.checkpoint),
        "experts": [e.config for e in model.experts[:2]],
        "symbol": arguments.symbol,
        "cell_A": crystal.cell.cell.lengths().tolist(),
        "crystal_difference_meV": 1e3 * (b - a),  # per atom, cheap minus expensive
        "neighbors": crystal.n_shell,
        "selection": arguments.selection,
        "counted": list(arguments.counted),
        "blend": arguments.blend,
    }


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("--checkpoint", default="", help="name or path")
    add("--symbol", default="Si", help="element of the crystal")
    add("--cells", type=int, help="conventional cells along each axis; default about 216 atoms")
    add("--cores", type=float, nargs="*", default=(1.5, 3.0, 5.0), help="Å, of grown regions")
    add("--rim-cores", type=float, nargs="*", default=(1.5, 3.0), help="Å, of spheres around the rims")
    add("--blend", type=float, default=1.5, help="Å")
    add(
        "--selection",
        choices=list(systems.SELECTIONS),
        default="changed",
        help="atoms that regions grow from",
    )
    add(
        "--counted",
        type=float,
        nargs=2,
        help="a neighbour counts fully up to and not from these; in distances of the first shell (default "
        f"{systems.COUNTED}, of the dynamics {systems.COUNTED_HOT})",
    )
    add("--images", type=int, default=5, help="of the band, without its ends")
    add("--fmax", type=float, default=0.02, help="eV/Å")
    add("--steps", type=int, default=500, help="of each relaxation, at most")
    add("--calls", type=int, default=10, help="timed calls of forces")
    add("--speed-cells", type=int, help="of the larger crystal; default about 1,500 atoms")
    add("--repeats", type=int, default=15, help="timed steps of dynamics")
    add("--dynamics", action="store_true", help="energy conservation instead")
    add("--runs", nargs="+", choices=list(RUNS), default=list(RUNS))
    add("--core", type=float, default=3.0, help="Å, of the grown region of the dynamics")
    add("--temperature-K", type=float, help="of the dynamics; default that of defects_dynamics.py")
    add("--ps", type=float, default=10.0, help="of each run")
    add("--thermalize-ps", type=float, default=2.0)
    add("--results", default=harness.RESULTS, help="folder of the JSON lines")
    add("--smoke", action="store_true", help="two Lennard-Jones experts, few steps")
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    parsed = parser().parse_args(arguments)
    if parsed.smoke:
        short = {"cells": 3, "cores": [1.5], "rim_cores": [1.0], "images": 1, "fmax": 1.0, "steps": 3}
        short |= {"calls": 1, "speed_cells": 3, "repeats": 1, "ps": 0.3, "thermalize_ps": 0.05}
        short |= {"counted": systems.COUNTED, "core": 1.5}
        vars(parsed).update(short, symbol="Cu", checkpoint="smoke", temperature_K=300.0)
        model = systems.smoke_pair(("Cu",), "fcc", ("Cu",))
    else:
        model = mm.load(parsed.checkpoint)
    parsed.counted = parsed.counted or (systems.COUNTED_HOT if parsed.dynamics else systems.COUNTED)
    crystal = systems.crystal_of(model, parsed.symbol)
    shared = head(model, crystal, parsed)
    if parsed.dynamics:
        for record in simulate_runs(model, crystal, parsed):
            harness.append(parsed.results, "defects", {**shared, "part": "dynamics", **record})
        return
    record = measure(model, crystal, parsed)
    harness.append(parsed.results, "defects", {**shared, "part": "barrier", **record})
    timed = speed(model, crystal, parsed)
    print(systems.describe_steps(timed["speed"]), flush=True)
    harness.append(parsed.results, "defects", {**shared, "part": "speed", "dtype": "float32", **timed})


if __name__ == "__main__":
    main()
