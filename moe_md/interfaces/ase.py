"""The mixture as an ASE calculator: any cell, any periodicity.

    E = sum_i sum_e w_ie E_ie,  F = -dE/dR,  stress = (1/V) dE/d strain  (ASE's sign)

with one weight of one for each atom where regions are fixed, and else with the
region's, whose gradient is part of forces and stress. Each expert gets image
rows of the atoms on which it has weight, and of a halo if it passes messages.
Rows, slots and atoms are padded to a few sizes, so that a program compiled once
serves many structures.
"""

import contextlib
import warnings
from functools import partial
from typing import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from moe_md import checkpoint as checkpoints
from moe_md import derivatives
from moe_md.checkpoint import Checkpoint
from moe_md.experts import Expert, chunked_atom_energies
from moe_md.interfaces import ase_gates
from moe_md.neighborhood import Neighborhood, closer, image_pairs, rows_from_images
from moe_md.regions import Fixed


class MixtureCalculator(Calculator):
    """Energies, forces and stress of a mixture, the whole's and each atom's.

    Args:
        checkpoint: a `Checkpoint`, or what `mm.load` takes.
        region: which expert computes which atom: an expert's number for all
            atoms, `[n_atoms]` numbers, any region of `mm.regions`, or a
            function of the ASE atoms that returns one of these. 0 is the most
            expensive expert. Regions that follow atoms (`around`,
            `coordination`, ...) conserve energy; a function that reassigns
            atoms as they move makes jumps in it.
        dtype: "float64" (jax's own setting is left as it is) or "float32".
        chunk_size: rows computed at a time.

    Raises:
        ValueError: an argument is out of range; on use, an atom's chemical
            symbol is unknown, or the assignment does not fit the atoms.

    >>> import ase.build, moe_md as mm
    >>> expert = mm.experts.lennard_jones(("Pt",), 5.6, epsilon=0.6, sigma=2.5446)
    >>> checkpoint = mm.Checkpoint((expert,), (expert.init(None),), {}, {})
    >>> atoms = ase.build.bulk("Pt", a=3.9)
    >>> atoms.calc = MixtureCalculator(checkpoint, region=0)
    >>> bool(abs(atoms.get_forces()).max() < 1e-12)
    True
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress", "stresses"]

    def __init__(self, checkpoint, region, *, dtype: str = "float64", chunk_size: int = 64, **kwargs):
        super().__init__(**kwargs)
        if dtype not in ("float32", "float64"):
            raise ValueError(f"dtype must be 'float32' or 'float64', got {dtype!r}.")
        if not isinstance(checkpoint, Checkpoint):
            checkpoint = checkpoints.load(checkpoint)
        self.checkpoint = checkpoint
        self.region = region
        self._dtype = np.dtype(dtype)
        self._evaluate = [_evaluator(e, chunk_size) for e in checkpoint.experts]
        self._warned = False
        if not callable(region) and not _has_gate(region):
            self._assignment_of(region, None)

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        """Fills `results` with every property that the cell allows."""
        super().calculate(atoms, properties, system_changes)
        atoms = self.atoms
        has_volume = atoms.cell.rank == 3
        if {"stress", "stresses"} & set(properties) and not has_volume:
            raise PropertyNotImplementedError(
                f"stress needs a cell with a volume, three independent vectors, got {atoms.cell.tolist()}."
            )
        n_atoms = len(atoms)
        species = self._species_of(atoms)
        region = self.region(atoms) if callable(self.region) else self.region
        # One list for all experts and the gate: listing takes as long as a cheap expert.
        reach = max(e.cutoff for e in self.checkpoint.experts)
        pairs = image_pairs(atoms.positions, atoms.cell.array, atoms.pbc, reach)
        with self._precision():
            weight, gate_part = self._weights_of(region, atoms, species, pairs)
        by_expert = np.zeros(weight.shape)
        forces, virials = np.zeros((n_atoms, 3)), np.zeros((n_atoms, 3, 3))
        for e, expert in enumerate(self.checkpoint.experts):
            owned = np.flatnonzero(weight[:, e] > 0)
            if len(owned) == 0:
                continue
            near = closer(pairs, expert.cutoff)
            centers = owned if expert.num_hops == 1 else np.concatenate([owned, _halo(expert.num_hops, near, n_atoms, owned)])
            place = (atoms.positions, species, atoms.cell.array, atoms.pbc)
            rows = rows_from_images(*place, expert.cutoff, centers=centers, dtype=self._dtype, pairs=near)
            self._warn_outside_domain(e, expert, jax.tree.map(lambda x: x[: len(owned)], rows))
            rows, padded_centers = _pad(rows, centers, n_atoms)
            weights = np.zeros(len(padded_centers), self._dtype)
            weights[: len(owned)] = weight[owned, e]
            with self._precision():
                out = self._evaluate[e](self.checkpoint.params[e], rows, padded_centers, weights, _roomy(n_atoms))
                own, force, strained = (np.asarray(x, float) for x in out)
            by_expert[owned, e] = own[: len(owned)]
            forces += force[:n_atoms]
            virials[centers] += strained[: len(centers)]
        if gate_part is not None:
            with self._precision():
                force, strained = gate_part(by_expert.astype(self._dtype))
            forces += np.asarray(force, float)
            virials += np.asarray(strained, float)
        energies = np.sum(weight * by_expert, axis=1)
        energy = float(energies.sum())
        self.results = {"energy": energy, "free_energy": energy, "energies": energies, "forces": forces}
        if has_volume:
            # As ASE has it, those of the atoms add up to that of the whole.
            self.results["stresses"] = full_3x3_to_voigt_6_stress(virials / atoms.get_volume())
            self.results["stress"] = self.results["stresses"].sum(axis=0)

    def _precision(self):
        return jax.enable_x64(True) if self._dtype == np.float64 else contextlib.nullcontext()

    def _weights_of(self, region, atoms, species, pairs) -> tuple[np.ndarray, Callable | None]:
        """`[n_atoms, n_experts]`, and where they may change, what that adds to forces and virials, of energies `[n_atoms, n_experts]`."""
        n_atoms, n_experts = len(atoms), len(self.checkpoint.experts)
        if not _has_gate(region):
            return np.eye(n_experts)[self._assignment_of(region, n_atoms)], None
        place, cutoff = ase_gates.place_of(atoms, species, pairs, max(e.cutoff for e in self.checkpoint.experts), self._dtype)
        ase_gates.check_reach(region, place)
        weight = np.asarray(ase_gates.weights(region, place, cutoff=cutoff), float)
        if weight.shape != (n_atoms, n_experts) or not np.isfinite(weight).all():
            raise ValueError(
                f"region must give each of the {n_atoms} atoms a weight on each of the {n_experts} experts, got shape {weight.shape}"
                f"{'' if np.isfinite(weight).all() else ' and NaN, as of seeds that are no atoms'}."
            )
        return weight, partial(ase_gates.pull, region, place, cutoff=cutoff) if region.moves else None

    def _species_of(self, atoms) -> np.ndarray:
        known = self.checkpoint.experts[0].species
        unknown = sorted(set(atoms.symbols) - set(known))
        if unknown:
            raise ValueError(f"atoms must be of the species {known} that the checkpoint knows, got {', '.join(unknown)}.")
        return np.array([known.index(s) for s in atoms.symbols], np.int32)

    def _assignment_of(self, region, n_atoms: int | None) -> np.ndarray:
        values = np.asarray(region.assignment if isinstance(region, Fixed) else region)
        if values.ndim > 1 or not np.issubdtype(values.dtype, np.integer):
            raise ValueError(
                "region must be an expert's number, a vector of them, a region or a function, "
                f"got shape {values.shape} and dtype {values.dtype}."
            )
        n_experts = len(self.checkpoint.experts)
        if values.size and not (0 <= values.min() and values.max() < n_experts):
            raise ValueError(
                f"region must name experts 0 to {n_experts - 1} of the checkpoint, got {values.min()} to {values.max()}."
            )
        if values.ndim == 1 and n_atoms is not None and len(values) != n_atoms:
            raise ValueError(f"region must assign each of the {n_atoms} atoms, got a length of {len(values)}.")
        return values if n_atoms is None else np.broadcast_to(values, (n_atoms,))

    def _warn_outside_domain(self, e: int, expert: Expert, rows: Neighborhood) -> None:
        foreign = ~np.array([s in expert.domain for s in expert.species])
        count = int((foreign[rows.center_species] | (rows.mask & foreign[rows.neighbor_species]).any(axis=1)).sum())
        if count and not self._warned:
            self._warned = True
            warnings.warn(
                f"region gives expert {e} {count} atoms that are or see species outside its domain {expert.domain}: "
                f"its energies there are untrained. Enlarge the region by its cutoff, {expert.cutoff} Å.",
                stacklevel=4,
            )


def _has_gate(region) -> bool:
    return hasattr(region, "gate") and not isinstance(region, Fixed)


def _evaluator(expert: Expert, chunk_size: int) -> Callable:
    """(params, rows, centers, weights, n_atoms) -> energies `[n]`, and of their sum with `weights`, `[n]`, forces `[n_atoms, 3]`, virials `[n, 3, 3]`."""
    atom_energies = chunked_atom_energies(expert, chunk_size)

    def evaluate(params, rows: Neighborhood, centers, weights, n_atoms: int):
        n_rows = centers.shape[0]
        seen = rows
        if expert.num_hops > 1:
            row_of = jnp.full(n_atoms + 1, n_rows).at[centers].set(jnp.arange(n_rows)).at[n_atoms].set(n_rows)
            seen = rows._replace(neighbor=row_of[rows.neighbor])

        def total(displacement):
            energies = atom_energies(params, seen._replace(displacement=displacement))
            energies = jnp.where(weights > 0, energies, 0.0)
            return jnp.sum(weights * energies), energies

        g, energies = jax.grad(total, has_aux=True)(rows.displacement)
        return energies, derivatives.forces(g, rows, centers, n_atoms), derivatives.virial(g, rows)

    return jax.jit(evaluate, static_argnums=4)


def _halo(num_hops: int, pairs, n_atoms: int, owned: np.ndarray) -> np.ndarray:
    """Atoms whose rows an expert that passes messages needs beside the owned ones."""
    i, j, _ = pairs
    reached = np.zeros(n_atoms, bool)
    reached[owned] = True
    for _ in range(num_hops - 1):
        reached[j[reached[i]]] = True
    reached[owned] = False
    return np.flatnonzero(reached)


def _roomy(n: int) -> int:
    """The next size of 1, 2, 3, 4, 6, 8, 12, 16, 24, ...: at most half as much again."""
    power = 1 << max(n - 1, 0).bit_length()
    return power * 3 // 4 if power >= 4 and power * 3 // 4 >= n else power


def _pad(rows: Neighborhood, centers: np.ndarray, n_atoms: int) -> tuple[Neighborhood, np.ndarray]:
    """Rows, slots and atoms at roomy sizes; what is padded points beyond the last atom."""
    n, k = rows.mask.shape
    more = ((0, _roomy(n) - n), (0, _roomy(k) - k))
    nowhere = _roomy(n_atoms)
    padded = Neighborhood(
        displacement=np.pad(rows.displacement, (*more, (0, 0)), constant_values=1.0),
        mask=np.pad(rows.mask, more),
        center_species=np.pad(rows.center_species, more[0]),
        neighbor_species=np.pad(rows.neighbor_species, more),
        neighbor=np.pad(np.where(rows.mask, rows.neighbor, nowhere), more, constant_values=nowhere).astype(np.int32),
    )
    return padded, np.pad(centers, more[0], constant_values=nowhere).astype(np.int32)
