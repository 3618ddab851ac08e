"""Label frames of Pt and CO: PBE with GPAW, or a foundation model; one file per frame, resumable.

    python label.py label --frames todo.xyz --out labels/ [--part 0/2] [--hours 2]
    python label.py label --with sevennet --frames fm.xyz --out labels-fm/
    python label.py collect --labels labels/ --into frames.xyz.gz

`label` may be killed at any time: a frame is labelled when its file exists. Frames with
such a file, or in a collection of `--known`, are skipped. `sample.py` makes frames.
GPAW needs a compiler and libxc:

    apt-get install libxc-dev libopenblas-dev libopenmpi-dev libfftw3-dev
    pip install gpaw==26.7.0 gpaw-data

Recipe: PBE, plane waves 500 eV, 10-electron Pt, Fermi-Dirac 0.1 eV, no point
group. The forces are the gradient of `free_energy`. A 4-atom bulk cell takes about 40
to 110 s of one core, a 14-atom slab 130 to 390 s.

The foundation model is SevenNet `7net-l3i5`, whose weights are in its package
(`pip install torch==2.13.0 sevenn==0.13.0`): 0.02 s per atom. Its forces are too small
away from equilibrium. Use its labels for a first training, not as a reference.
"""

import argparse
import hashlib
import os
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import read, write

PLANE_WAVE_EV = 500.0
BULK_K, SLAB_K = (
    23.9,
    16.9,
)  # k points times length of the cell, Å: 6x6x6 for fcc's cubic cell, 3x3x1 for a p(2x2) slab
FOUNDATION_MODEL = "7net-l3i5"


def frame_key(atoms: Atoms) -> str:
    """Name of a frame's label: a hash of composition, cell and positions."""
    text = (
        atoms.get_chemical_formula(mode="reduce").encode()
        + np.round(atoms.cell.array, 5).tobytes()
        + (np.round(atoms.positions, 5) + 0.0).tobytes()
    )
    return hashlib.sha256(text).hexdigest()[:16]


def k_points(atoms: Atoms) -> tuple[int, int, int]:
    """The k-point mesh of a frame: one density for bulk cells, another for slabs."""
    density = BULK_K if atoms.pbc.all() else SLAB_K
    counts = np.where(atoms.pbc, np.maximum(1, np.rint(density / np.maximum(atoms.cell.lengths(), 1e-9))), 1)
    return tuple(int(n) for n in counts)


def gpaw(atoms: Atoms, log: Path):
    """GPAW's calculator for frames of this cell and composition, and the name of the method."""
    from gpaw.new.ase_interface import GPAW

    options = dict(
        mode={"name": "pw", "ecut": PLANE_WAVE_EV},
        xc="PBE",
        setups={"Pt": "10"},
        occupations={"name": "fermi-dirac", "width": 0.1},
        kpts={"size": k_points(atoms), "gamma": True},
        symmetry={"point_group": False},
        mixer={"backend": "pulay", "beta": 0.1, "nmaxold": 8, "weight": 100},
        convergence={"density": 3e-4, "eigenstates": 1e-6},
        txt=str(log),
    )
    if atoms.pbc.any() and not atoms.pbc[2]:
        options["poissonsolver"] = {"dipolelayer": "xy"}
    k = "x".join(str(n) for n in k_points(atoms))
    return GPAW(**options), f"gpaw-{metadata.version('gpaw')} PBE PW500 Pt.10 k={k}"


def sevennet(atoms: Atoms, log: Path):
    """SevenNet's calculator for any frame, and the name of the method."""
    from sevenn.calculator import SevenNetCalculator

    return SevenNetCalculator(
        FOUNDATION_MODEL, device="cpu"
    ), f"sevenn-{metadata.version('sevenn')} {FOUNDATION_MODEL}"


METHODS: dict[str, Callable] = {"gpaw": gpaw, "sevennet": sevennet}


def system_of(atoms: Atoms, method: str):
    """A key: frames with equal keys share a calculator, which saves a third of GPAW's time."""
    return method != "gpaw" or (
        atoms.get_chemical_formula(),
        atoms.cell.array.round(8).tobytes(),
        atoms.pbc.tobytes(),
    )


def part_of(frames: list[Atoms], part: str) -> list[Atoms]:
    """Part `i/n` of the frames: every n-th trajectory, so that calculators are reused."""
    index, count = (int(x) for x in part.split("/"))
    origins = list(dict.fromkeys(a.info.get("origin", str(i)) for i, a in enumerate(frames)))
    mine = set(origins[index::count])
    return [a for i, a in enumerate(frames) if a.info.get("origin", str(i)) in mine]


def label(arguments) -> None:
    """Label the frames that have no label."""
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    known = {frame_key(a) for path in arguments.known for a in read(path, ":")}
    stop = time.time() + 3600 * arguments.hours
    calc, source, calc_system = None, "", None
    for atoms in part_of(read(arguments.frames, ":"), arguments.part):
        if time.time() > stop:
            break
        target = out / f"{frame_key(atoms)}.xyz"
        if target.exists() or frame_key(atoms) in known:
            continue
        atoms = atoms.copy()
        atoms.set_constraint()
        system = system_of(atoms, arguments.method)
        if calc is None or system != calc_system:
            log = out / f"{arguments.method}-{arguments.part.replace('/', '-')}.txt"
            (calc, source), calc_system = METHODS[arguments.method](atoms, log), system
        started = time.time()
        atoms.calc = calc
        try:
            atoms.get_potential_energy()
            results = dict(
                energy=atoms.get_potential_energy(),
                free_energy=atoms.get_potential_energy(force_consistent=True),
                forces=np.asarray(atoms.get_forces(), float).round(5),
            )
            if atoms.pbc.all():
                results["stress"] = atoms.get_stress()
        except Exception as error:  # a frame that does not converge does not end the run
            print(f"{atoms.info.get('kind')} {target.stem} failed: {error}", flush=True)
            calc = None
            continue
        atoms.info["source"] = source
        save_label(atoms, results, target)
        print(
            f"{atoms.info.get('kind')} {atoms.info.get('origin')} {time.time() - started:.0f} s", flush=True
        )


def save_label(atoms: Atoms, results: dict, target: Path) -> None:
    """Write a labelled frame atomically."""
    from ase.calculators.singlepoint import SinglePointCalculator

    labelled = atoms.copy()
    labelled.calc = SinglePointCalculator(labelled, **results)
    partial = target.with_suffix(".partial")
    write(partial, labelled, format="extxyz")
    os.replace(partial, target)


def collect(arguments) -> None:
    """Merge label files into one collection without duplicates, earlier frames first."""
    into = Path(arguments.into)
    frames = read(into, ":") if into.exists() else []
    seen = {frame_key(a) for a in frames}
    fresh = [read(p) for p in sorted(Path(arguments.labels).glob("*.xyz"))]
    fresh = [
        a for a in fresh if frame_key(a) not in seen and np.abs(a.get_forces()).max() < arguments.max_force
    ]
    fresh.sort(key=lambda a: (a.info["kind"], a.info["origin"], a.info.get("step", 0)))
    partial = into.with_name("partial-" + into.name)
    write(partial, frames + fresh, format="extxyz")
    os.replace(partial, into)
    print(f"{len(fresh)} new frames, {len(frames) + len(fresh)} in {into}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)

    sub = commands.add_parser("label", help="label the frames that have none")
    sub.add_argument("--with", dest="method", choices=sorted(METHODS), default="gpaw")
    sub.add_argument("--frames", required=True)
    sub.add_argument("--out", required=True, help="folder of label files")
    sub.add_argument("--known", nargs="*", default=[], help="collections whose frames are skipped")
    sub.add_argument("--part", default="0/1", help="i/n: every n-th trajectory, for n processes")
    sub.add_argument("--hours", type=float, default=1e9)
    sub.set_defaults(run=label)

    sub = commands.add_parser("collect", help="merge label files into a collection")
    sub.add_argument("--labels", required=True)
    sub.add_argument("--into", required=True)
    sub.add_argument(
        "--max-force", type=float, default=np.inf, help="eV/Å: frames with a larger component are left out"
    )
    sub.set_defaults(run=collect)

    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
