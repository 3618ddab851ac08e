"""Choose frames to label: those with the largest disagreement of a committee of pairs.

    python sample.py fm --out candidates.xyz --share 0.3 --seed 7
    python choose.py --candidates candidates.xyz --committee a.msgpack b.msgpack c.msgpack --out queue.xyz

The disagreement of a frame is the largest, over its atoms, of the spread of the
expensive experts' forces (root mean square deviation from their mean). Members
are trainings with different seeds or splits. At most `--per-origin` frames of one
trajectory are chosen, and none with more than `--max-atoms` atoms or a force above
`--max-force`, as unphysical structures are of little use. Energies are not compared, as
each member has its own reference energies.
"""

import argparse

import numpy as np
from ase import Atoms
from ase.io import read, write

from moe_md.interfaces.ase import MixtureCalculator


def committee_forces(frames: list[Atoms], checkpoints: list[str]) -> list[np.ndarray]:
    """Forces of every member, `[n_members, n_atoms, 3]` eV/Å for each frame."""
    of_member = []
    for checkpoint in checkpoints:
        calc = MixtureCalculator(checkpoint, region=0, dtype="float32")
        found = []
        for atoms in frames:
            atoms = atoms.copy()
            atoms.calc = calc
            found.append(atoms.get_forces())
        of_member.append(found)
    return [np.stack(forces) for forces in zip(*of_member)]


def disagreement(forces: np.ndarray) -> float:
    """Largest spread of the forces on an atom, eV/Å."""
    deviation = np.linalg.norm(forces - forces.mean(axis=0), axis=-1)
    return float(np.sqrt(np.mean(deviation**2, axis=0)).max())


def choose(
    frames: list[Atoms], forces: list[np.ndarray], *, count: int, per_origin: int, max_force: float
) -> list[int]:
    """Indices of the frames to label, largest disagreement first."""
    size = np.array([disagreement(f) for f in forces])
    taken, chosen = {}, []
    for k in np.argsort(-size):
        origin = frames[k].info.get("origin", str(k))
        if np.abs(forces[k]).max() > max_force or taken.get(origin, 0) >= per_origin:
            continue
        taken[origin] = taken.get(origin, 0) + 1
        frames[k].info["disagreement"] = round(float(size[k]), 4)
        chosen.append(int(k))
        if len(chosen) == count:
            break
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--candidates", required=True)
    parser.add_argument("--committee", nargs="+", required=True, help="at least two checkpoints")
    parser.add_argument("--out", required=True)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--per-origin", type=int, default=1)
    parser.add_argument("--max-atoms", type=int, default=20)
    parser.add_argument("--max-force", type=float, default=15.0, help="eV/Å, by any member")
    arguments = parser.parse_args()
    if len(arguments.committee) < 2:
        parser.error(f"committee must be at least two checkpoints, got {arguments.committee}")
    frames = [a for a in read(arguments.candidates, ":") if len(a) <= arguments.max_atoms]
    forces = committee_forces(frames, arguments.committee)
    limits = {"count": arguments.count, "per_origin": arguments.per_origin, "max_force": arguments.max_force}
    chosen = choose(frames, forces, **limits)
    write(arguments.out, [frames[k] for k in chosen], format="extxyz")
    sizes = [frames[k].info["disagreement"] for k in chosen]
    print(
        f"{len(chosen)} of {len(frames)} frames, disagreement {min(sizes):.2f} to "
        f"{max(sizes):.2f} eV/Å, in {arguments.out}"
    )


if __name__ == "__main__":
    main()
