"""The problem that all cases of `bench_peers.py` solve, and the models they share."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

CUTOFF = 5.0  # Å
SHARE = 0.05  # share of the mixture's atoms on its expensive expert
ALLEGRO = {
    "builder": "allegro",
    "species": ("Pt", "C", "O"),
    "cutoff": CUTOFF,
    "l_max": 2,
    "num_layers": 2,
    "num_scalar_features": 64,
    "num_tensor_features": 32,
    "avg_num_neighbors": 42.0,
}
NEQUIP = {"num_layers": 2, "l_max": 2}
IRREPS, TINY_IRREPS = "32x0e + 32x1o + 32x2e", "4x0e + 4x1o"
MACE = {"num_layers": 2, "l_max": 2, "num_channels": 32, "node_symmetry": 1, "correlation": 3}
TINY_NEQUIP = {"num_layers": 2, "l_max": 1}
TINY_MACE = {"num_layers": 2, "l_max": 1, "num_channels": 4, "node_symmetry": 1, "correlation": 2}


class Problem(NamedTuple):
    """A crystal whose energy and forces are computed."""

    position: np.ndarray  # [n_atoms, 3] float32, Å, a crystal of Pt
    edges: np.ndarray  # [3] float32, Å, a periodic box
    tiny: bool  # use the small models of a smoke run
    folder: Path  # for shared files: the parameters of Allegro

    def atoms(self):
        """The crystal as ASE atoms."""
        import ase

        return ase.Atoms(
            f"Pt{len(self.position)}", self.position.astype(float), cell=self.edges.astype(float), pbc=True
        )


class Built(NamedTuple):
    """A case, ready to be timed."""

    evaluate: Callable  # () -> result; returns when the result is complete
    read: Callable  # result -> energy in eV, forces [n_atoms, 3] in eV/Å
    edges: int | None = None  # pairs in the neighbour list
    calls: int = 1  # evaluations per call of `evaluate`


def allegro_config(tiny: bool) -> dict:
    """Configuration of Allegro."""
    from harness import TINY

    return {**ALLEGRO, **(TINY[0] if tiny else {})}
