"""The mixture as an ASE calculator: any cell, any periodicity.

    E = sum_i sum_e w_ie E_ie,  F = -dE/dR,  stress = (1/V) dE/d strain  (ASE's sign)

with one weight of one for each atom where regions are fixed, and else with the
region's, whose gradient is part of forces and stress. Each expert gets image
rows of the atoms on which it has weight, and of a halo if it passes messages.
Rows are held while atoms move little; rows, slots and atoms are padded to a few
sizes, so that a program compiled once serves many structures.
"""

import contextlib
from typing import NamedTuple, cast

import jax
import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from moe_md import checkpoint as checkpoints
from moe_md.checkpoint import Checkpoint
from moe_md.experts.domain import warn_out_of_domain
from moe_md.interfaces import ase_gates, cached_rows
from moe_md.interfaces.cached_rows import When
from moe_md.neighbors.rows import closer, image_pairs
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
        dr_threshold: Å, skin of the neighbour lists, which last until an atom has
            moved by half of it; a cell may change meanwhile.

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

    implemented_properties = [  # noqa: RUF012  # a list, as ASE's own
        *("energy", "free_energy", "energies", "forces", "stress", "stresses"),
    ]

    def __init__(
        self,
        checkpoint,
        region,
        *,
        dtype: str = "float64",
        chunk_size: int = 64,
        dr_threshold: float = 0.4,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if dtype not in ("float32", "float64"):
            raise ValueError(f"dtype must be 'float32' or 'float64', got {dtype!r}.")
        if not (np.isfinite(dr_threshold) and dr_threshold >= 0):
            raise ValueError(f"dr_threshold must be a length (Å), not negative, got {dr_threshold}.")
        if not isinstance(checkpoint, Checkpoint):
            checkpoint = checkpoints.load(checkpoint)
        self.checkpoint = checkpoint
        self.region = region
        self._dtype = np.dtype(dtype)
        self._skin = float(dr_threshold)
        self._held: _Held | None = None
        self._evaluate = [cached_rows.evaluator(e, chunk_size) for e in checkpoint.experts]
        self._warned = False
        if not callable(region) and not _has_gate(region):
            self._assignment_of(region, None)

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        """Fills `results` with every property that the cell allows."""
        super().calculate(atoms, properties, system_changes)
        atoms = cast(Atoms, self.atoms)
        has_volume = atoms.cell.rank == 3
        if {"stress", "stresses"} & set(properties) and not has_volume:
            raise PropertyNotImplementedError(
                f"stress needs a cell with a volume, three independent vectors, got {atoms.cell.tolist()}."
            )
        species = self._species_of(atoms)
        region = self.region(atoms) if callable(self.region) else self.region
        now = cached_rows.when(atoms, species)
        reach = max(e.cutoff for e in self.checkpoint.experts)
        with self._precision():
            held, out = self._held, None
            if held is not None and self._lasts(held, now, reach):
                out = self._computed(held, now, region)
            if out is None:
                held = self._held = self._listed(now, region, reach)
                out = self._computed(held, now, region)
        weight, by_expert, forces, virials = out
        energies = np.sum(weight * by_expert, axis=1)
        energy = float(energies.sum())
        self.results = {"energy": energy, "free_energy": energy, "energies": energies, "forces": forces}
        if has_volume:
            # As ASE has it, those of the atoms add up to that of the whole.
            stresses = full_3x3_to_voigt_6_stress(virials / atoms.get_volume())
            self.results |= {"stresses": stresses, "stress": stresses.sum(axis=0)}

    def _lasts(self, held: "_Held", now: When, reach: float) -> bool:
        """Whether what is held knows all neighbours; for gates, also where the cell has become narrow."""
        needs_rebuild = cached_rows.needs_rebuild(held.when, now, reach, self._skin)
        return not needs_rebuild and held.whole <= ase_gates.half_width(now)

    def _listed(self, now: When, region, reach: float) -> "_Held":
        """Neighbours of the atoms of each expert, listed once for all of them and the gate."""
        last = self._held
        n_atoms = len(now.position)
        pairs = image_pairs(now.position, now.cell, now.pbc, reach + self._skin)
        idx, whole = ase_gates.neighbors_of_all(now, pairs, reach, self._skin)
        place = ase_gates.Place(
            now.position.astype(self._dtype), now.cell.astype(self._dtype), now.pbc, now.species, idx
        )
        weight = self._weights_of(region, place, whole)
        support = weight > 0
        if _has_gate(region):
            ase_gates.check_reach(region, place)
            support |= np.asarray(ase_gates.support(region, place, cutoff=whole, margin=self._skin))
        self._check_domains(weight, now, pairs)
        rows, slots = [], []
        for e, expert in enumerate(self.checkpoint.experts):
            own = np.flatnonzero(support[:, e])
            near, wide = closer(pairs, expert.cutoff), closer(pairs, expert.cutoff + self._skin)
            halo = _halo(expert.num_hops, wide, n_atoms, own)
            like = last.rows[e] if last else None
            rows.append(
                cached_rows.hold(now, wide, expert.cutoff + self._skin, own, halo, self._dtype, like)
                if len(own)
                else None
            )
            slots.append(cached_rows.slots_for(expert, near, own, last.slots[e] if last else None))
        return _Held(now, idx, whole, support, rows, slots)

    def _computed(self, held: "_Held", now: When, region):
        """Weights, energies, forces and virials of atoms; None where the rows held do not do."""
        n_atoms, n_padded = len(now.position), cached_rows.roomy(len(now.position))
        R, cell = now.position.astype(self._dtype), now.cell.astype(self._dtype)
        place = ase_gates.Place(R, cell, now.pbc, now.species, held.idx)
        weight = self._weights_of(region, place, held.whole)
        if ((weight > 0) & ~held.support).any():
            return None
        more = (0, n_padded - n_atoms)
        padded, shares = np.pad(R, (more, (0, 0))), np.pad(weight.astype(self._dtype), (more, (0, 0)))
        by_expert = np.zeros(weight.shape)
        # All are on their way before the first is waited for.
        parts = {
            e: self._evaluate[e](self.checkpoint.params[e], rows, padded, cell, shares[:, e], held.slots[e])
            for e, rows in enumerate(held.rows)
            if rows is not None and (weight[:, e] > 0).any()
        }
        forces, virials = np.zeros((n_atoms, 3)), np.zeros((n_atoms, 3, 3))
        for e, part in parts.items():
            if held.slots[e] is not None and int(part.fullest) > held.slots[e]:
                return None
            by_expert[:, e] = part.energies[:n_atoms]
            forces += np.asarray(part.forces, float)[:n_atoms]
            virials += np.asarray(part.virials, float)[:n_atoms]
        if _has_gate(region) and region.is_dynamic:
            force, strained = ase_gates.pull(region, place, by_expert.astype(self._dtype), cutoff=held.whole)
            forces += np.asarray(force, float)
            virials += np.asarray(strained, float)
        return weight, by_expert, forces, virials

    def _precision(self):
        return jax.enable_x64(True) if self._dtype == np.float64 else contextlib.nullcontext()

    def _weights_of(self, region, place: ase_gates.Place, whole: float) -> np.ndarray:
        """`[n_atoms, n_experts]`; neighbours are known up to `whole`, Å."""
        n_atoms, n_experts = len(place.position), len(self.checkpoint.experts)
        if not _has_gate(region):
            return np.eye(n_experts)[self._assignment_of(region, n_atoms)]
        weight = np.asarray(ase_gates.weights(region, place, cutoff=whole), float)
        if weight.shape != (n_atoms, n_experts) or not np.isfinite(weight).all():
            raise ValueError(
                f"region must give each of the {n_atoms} atoms a weight on each of the {n_experts} experts, "
                f"got shape {weight.shape}"
                f"{'' if np.isfinite(weight).all() else ' and NaN, as of seeds that are no atoms'}."
            )
        return weight

    def _species_of(self, atoms) -> np.ndarray:
        known = self.checkpoint.experts[0].species
        unknown = sorted(set(atoms.symbols) - set(known))
        if unknown:
            raise ValueError(
                f"atoms must be of the species {known} that the checkpoint knows, got {', '.join(unknown)}."
            )
        return np.array([known.index(s) for s in atoms.symbols], np.int32)

    def _assignment_of(self, region, n_atoms: int | None) -> np.ndarray:
        values = np.asarray(region.assignment if isinstance(region, Fixed) else region)
        if values.ndim > 1 or not np.issubdtype(values.dtype, np.integer):
            raise ValueError(
                "region must be an expert's number, a vector of them, a region or a function, "
                f"got shape {values.shape} and dtype {values.dtype}."
            )
        n_experts = len(self.checkpoint.experts)
        if values.size and not (values.min() >= 0 and values.max() < n_experts):
            raise ValueError(
                f"region must name experts 0 to {n_experts - 1} of the checkpoint, "
                f"got {values.min()} to {values.max()}."
            )
        if values.ndim == 1 and n_atoms is not None and len(values) != n_atoms:
            raise ValueError(
                f"region must assign each of the {n_atoms} atoms, got a length of {len(values)}."
            )
        return values if n_atoms is None else np.broadcast_to(values, (n_atoms,))

    def _check_domains(self, weight: np.ndarray, now: When, pairs) -> None:
        """Warn, once, of experts that own atoms outside their domains."""
        if self._warned:
            return
        experts = self.checkpoint.experts
        counts = [
            cached_rows.n_out_of_domain(e, np.flatnonzero(share > 0), now, pairs)
            for e, share in zip(experts, weight.T)
        ]
        self._warned = not warn_out_of_domain(experts, np.array(counts), stacklevel=6)


class _Held(NamedTuple):
    """What is reused while atoms move little."""

    when: When
    idx: np.ndarray  # [n_atoms, K] int, for gates
    whole: float  # Å, up to which `idx` holds all neighbours
    support: np.ndarray  # [n_atoms, n_experts] bool, atoms whose rows an expert has
    rows: list  # `CachedRows` of each expert, None where it has no atom
    slots: list  # of each, as `slots_for` gives them


def _has_gate(region) -> bool:
    return hasattr(region, "gate") and not isinstance(region, Fixed)


def _halo(num_hops: int, pairs, n_atoms: int, owned: np.ndarray) -> np.ndarray:
    """Atoms whose rows an expert that passes messages needs beside the owned ones."""
    i, j, _ = pairs
    reached = np.zeros(n_atoms, bool)
    reached[owned] = True
    for _ in range(num_hops - 1):
        reached[j[reached[i]]] = True
    reached[owned] = False
    return np.flatnonzero(reached)
