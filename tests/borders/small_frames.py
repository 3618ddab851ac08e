"""Small files and frames for the tests of borders."""

import numpy as np
from ase.build import bulk

from moe_md import data, experts


def write(folder, text: str | bytes, name: str = "frames.xyz"):
    """Path of a new file."""
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def cells(n: int, symbol="Pt"):
    """Rattled cells of four atoms with an energy and forces, each a group of its own."""
    rng, frames = np.random.default_rng(5), []
    for k in range(n):
        atoms = bulk(symbol, "fcc", a=3.98, cubic=True)
        atoms.rattle(0.05, seed=k)
        frame = data.frame_from_atoms(atoms)._replace(group=f"run-{k}", source=f"frame {k} of a.xyz")
        labels = {"energy": -20.0 + 0.1 * rng.normal(), "forces": 0.3 * rng.normal(size=(4, 3))}
        frames.append(frame._replace(**labels))
    return frames


def pair_of(species, allowed):
    """Two Lennard-Jones experts, the domain of the second `allowed`."""
    return [
        experts.lennard_jones(species, 3.5, epsilon=0.2, sigma=2.5, allowed_species=who)
        for who in (species, allowed)
    ]
