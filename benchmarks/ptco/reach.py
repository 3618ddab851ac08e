"""Range of the forces of a labelling method.

    python reach.py --with sevennet

In a rattled crystal, all atoms farther than R from one atom are rattled again, and the
force on that atom changes. Half the mean square of the change is the variance of the force
at fixed positions of the atoms within R. Its root is a lower bound on the error of any
potential whose forces depend on atoms within R only. Forces of a strictly local potential
with cutoff c depend on atoms up to 2 c away, through neighbours that two atoms share.
"""

import argparse
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk
from label import METHODS


def reach(
    calc, crystal: Atoms, radii: list[float], *, rattle: float, samples: int, seed: int
) -> tuple[float, list[float]]:
    """Force on the first atom, and its standard deviation over positions of atoms beyond each radius.

    Args:
        calc: an ASE calculator.
        crystal: fully periodic; beyond half its edges, only atoms in the corners of the cell are moved.
        radii: Å.
        rattle: Å, standard deviation of displacements.
        samples: number of rattled crystals.
        seed: seed of the displacements.

    Returns:
        Root mean square of the force's components, and the standard deviation for each radius, eV/Å.
    """
    rng = np.random.default_rng(seed)
    distance = crystal.get_distances(0, range(len(crystal)), mic=True)

    def force(displacement: np.ndarray) -> np.ndarray:
        atoms = crystal.copy()
        atoms.positions += displacement
        atoms.calc = calc
        return atoms.get_forces()[0]

    forces, changes = [], []
    for _ in range(samples):
        near, far = rng.normal(0.0, rattle, (2, *crystal.positions.shape))
        forces.append(force(near))
        changes.append([force(np.where(distance[:, None] > r, far, near)) - forces[-1] for r in radii])
    return float(np.sqrt(np.mean(np.square(forces)))), np.sqrt(
        np.mean(np.square(changes), axis=(0, 2)) / 2
    ).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--with", dest="method", choices=sorted(METHODS), default="sevennet")
    parser.add_argument("--lattice-constant", type=float, default=3.977, help="Å")
    parser.add_argument("--repeat", type=int, default=5, help="cubic cells along each edge")
    parser.add_argument("--radii", type=float, nargs="+", default=(5.0, 6.0, 7.0, 8.0, 9.0), help="Å")
    parser.add_argument("--rattle", type=float, default=0.15, help="Å, standard deviation")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    crystal = bulk("Pt", "fcc", a=arguments.lattice_constant, cubic=True).repeat(arguments.repeat)
    calc, source = METHODS[arguments.method](crystal, Path("reach.txt"))
    options = {"rattle": arguments.rattle, "samples": arguments.samples, "seed": arguments.seed}
    force, spread = reach(calc, crystal, arguments.radii, **options)
    print(
        f"{source}: {len(crystal)} atoms rattled by {arguments.rattle} Å, forces of {1e3 * force:.0f} "
        f"meV/Å, {arguments.samples} samples"
    )
    for radius, of_radius in zip(arguments.radii, spread):
        print(f"beyond {radius:.1f} Å: {1e3 * of_radius:.1f} meV/Å")


if __name__ == "__main__":
    main()
