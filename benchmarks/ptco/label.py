"""Make PBE labels of Pt and CO/Pt(111) with GPAW, one file per frame, resumable.

    python label.py make  --out todo.xyz --clean 24 --bulk 24 --gas 6
    python label.py label --frames todo.xyz --out labels/ [--part 0/2] [--hours 2]
    python label.py collect --labels labels/ --into frames.xyz.gz

`label` may be killed at any time: a label exists when its file does, and a
frame that has one is skipped, here and in `--known` collections. GPAW needs a
compiler and libxc:

    apt-get install libxc-dev libopenblas-dev libopenmpi-dev libfftw3-dev
    pip install gpaw==26.7.0 gpaw-data

Recipe: PBE, plane waves 500 eV, 10-electron Pt, Fermi-Dirac 0.1 eV, no point
group. `free_energy` is the energy whose gradient the forces are. About 60 to
110 s of one core for a 4-atom bulk cell, 130 to 390 s for a 14-atom slab.
"""

import argparse
import hashlib
import os
import time
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import bulk, fcc111
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.io import read, write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution

PLANE_WAVE_EV = 500.0
LATTICE = 3.98  # Å, PBE with this recipe
SLAB_K, BULK_K, GAS_K = (3, 3, 1), (6, 6, 6), (1, 1, 1)


def frame_key(atoms: Atoms) -> str:
    """Name of a frame's label: a hash of what GPAW is given."""
    text = (
        atoms.get_chemical_formula(mode="reduce").encode()
        + np.round(atoms.cell.array, 5).tobytes()
        + (np.round(atoms.positions, 5) + 0.0).tobytes()
    )
    return hashlib.sha256(text).hexdigest()[:16]


def k_points(atoms: Atoms) -> tuple[int, int, int]:
    """The mesh of a frame: the same density for every bulk cell and every slab."""
    if not atoms.pbc.any():
        return GAS_K
    if not atoms.pbc[2]:
        return SLAB_K
    return BULK_K


def calculator(atoms: Atoms, log: Path):
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
    return GPAW(**options)


def part_of(frames: list[Atoms], part: str) -> list[Atoms]:
    """Whole trajectories, dealt round robin, so that calculators are reused."""
    index, count = (int(x) for x in part.split("/"))
    origins = list(dict.fromkeys(a.info.get("origin", str(i)) for i, a in enumerate(frames)))
    mine = set(origins[index::count])
    return [a for i, a in enumerate(frames) if a.info.get("origin", str(i)) in mine]


def label(arguments) -> None:
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    known = {frame_key(a) for path in arguments.known for a in read(path, ":")}
    stop = time.time() + 3600 * arguments.hours
    calc, same = None, None
    for atoms in part_of(read(arguments.frames, ":"), arguments.part):
        if time.time() > stop:
            break
        target = out / f"{frame_key(atoms)}.xyz"
        if target.exists() or frame_key(atoms) in known:
            continue
        atoms = atoms.copy()
        atoms.set_constraint()
        system = (atoms.get_chemical_formula(), atoms.cell.array.round(8).tobytes(), atoms.pbc.tobytes())
        if calc is None or system != same:
            calc, same = calculator(atoms, out / f"gpaw-{arguments.part.replace('/', '-')}.txt"), system
        started = time.time()
        atoms.calc = calc
        try:
            atoms.get_potential_energy()
            results = dict(
                energy=atoms.get_potential_energy(),
                free_energy=atoms.get_potential_energy(force_consistent=True),
                forces=atoms.get_forces(),
            )
            if atoms.pbc.all():
                results["stress"] = atoms.get_stress()
        except Exception as error:  # one frame that does not converge must not end the run
            print(f"{atoms.info.get('kind')} {target.stem} failed: {error}", flush=True)
            calc = None
            continue
        k = "x".join(str(n) for n in k_points(atoms))
        atoms.info["source"] = f"gpaw-26.7.0 PBE PW500 Pt.10 k={k}"
        save_label(atoms, results, target)
        print(f"{atoms.info.get('kind')} {atoms.info.get('origin')} {time.time() - started:.0f} s", flush=True)


def save_label(atoms: Atoms, results: dict, target: Path) -> None:
    from ase.calculators.singlepoint import SinglePointCalculator

    labelled = atoms.copy()
    labelled.calc = SinglePointCalculator(labelled, **results)
    partial = target.with_suffix(".partial")
    write(partial, labelled, format="extxyz")
    os.replace(partial, target)


def collect(arguments) -> None:
    """Merge label files into one collection, old frames first, none twice."""
    into = Path(arguments.into)
    frames = read(into, ":") if into.exists() else []
    seen = {frame_key(a) for a in frames}
    fresh = [read(p) for p in sorted(Path(arguments.labels).glob("*.xyz"))]
    fresh = [a for a in fresh if frame_key(a) not in seen]
    fresh.sort(key=lambda a: (a.info["kind"], a.info["origin"], a.info.get("step", 0)))
    partial = into.with_name("partial-" + into.name)
    write(partial, frames + fresh, format="extxyz")
    os.replace(partial, into)
    print(f"{len(fresh)} new frames, {len(frames) + len(fresh)} in {into}")


def md_frames(atoms: Atoms, temperature_K: float, count: int, rng, **info) -> list[Atoms]:
    """Snapshots of EMT Langevin dynamics, 100 fs apart after 200 fs."""
    atoms = atoms.copy()
    atoms.calc = EMT()
    MaxwellBoltzmannDistribution(atoms, temperature_K=2 * temperature_K, rng=rng)
    md = Langevin(atoms, 4 * units.fs, temperature_K=temperature_K, friction=0.02 / units.fs, rng=rng)
    md.run(50)
    frames = []
    for step in range(count):
        md.run(25)
        snapshot = atoms.copy()
        snapshot.set_constraint()
        del snapshot.arrays["momenta"]
        snapshot.info = dict(info, step=step)
        frames.append(snapshot)
    return frames


def make(arguments) -> None:
    rng = np.random.RandomState(arguments.seed)
    frames = []
    for i, temperature in enumerate(np.resize([300, 600, 900, 1200], arguments.clean // 3)):
        slab = fcc111("Pt", (2, 2, 3), a=LATTICE * rng.uniform(0.99, 1.01), vacuum=7.0)
        slab.pbc = (True, True, False)
        if i % 2 == 0:
            slab.set_constraint(FixAtoms(mask=slab.get_tags() == 3))
        origin = f"clean-{temperature}K-s{arguments.seed}-{i}"
        frames += md_frames(slab, temperature, 3, rng, kind="slab-clean", origin=origin)
    for i in range(arguments.bulk):
        cell = bulk("Pt", cubic=True, a=LATTICE)
        strain = rng.normal(size=(3, 3)) * rng.uniform(0.0, 0.03)
        scale = 1.0 + rng.uniform(-0.03, 0.04)
        cell.set_cell(cell.cell @ (np.eye(3) + (strain + strain.T) / 2) * scale, scale_atoms=True)
        cell.positions += rng.normal(size=cell.positions.shape) * rng.uniform(0.02, 0.15)
        cell.info = dict(kind="bulk-strained", origin=f"bulk-s{arguments.seed}-{i}")
        frames.append(cell)
    for i in range(arguments.gas):
        bond = np.linspace(1.02, 1.34, max(arguments.gas, 2))[i]
        frames.append(
            Atoms(
                "CO",
                [[5.0, 5.0, 5.0], [5.0, 5.0, 5.0 + bond]],
                cell=[10.0, 10.0, 11.0],
                info=dict(kind="gas-co", origin="gas-scan", step=i),
            )
        )
    write(arguments.out, frames, format="extxyz")
    print(f"{len(frames)} frames in {arguments.out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)

    sub = commands.add_parser("make", help="frames to label")
    sub.add_argument("--out", required=True)
    sub.add_argument("--clean", type=int, default=24, help="clean p(2x2) slabs, a multiple of 3")
    sub.add_argument("--bulk", type=int, default=24, help="strained and rattled 4-atom cells")
    sub.add_argument("--gas", type=int, default=6, help="CO bond lengths")
    sub.add_argument("--seed", type=int, default=0)
    sub.set_defaults(run=make)

    sub = commands.add_parser("label", help="run GPAW on frames without a label")
    sub.add_argument("--frames", required=True)
    sub.add_argument("--out", required=True, help="folder of label files")
    sub.add_argument("--known", nargs="*", default=[], help="collections whose frames are skipped")
    sub.add_argument("--part", default="0/1", help="i/n: every n-th trajectory, for n processes")
    sub.add_argument("--hours", type=float, default=1e9)
    sub.set_defaults(run=label)

    sub = commands.add_parser("collect", help="merge label files into a collection")
    sub.add_argument("--labels", required=True)
    sub.add_argument("--into", required=True)
    sub.set_defaults(run=collect)

    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
