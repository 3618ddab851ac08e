"""The mixture as an ASE calculator, for any cell and any periodicity.

    E = sum_i sum_e w_ie E_ie,  F = -dE/dR,  stress = (1/V) dE/d strain  (ASE's sign)

The gate w_ie is the share of atom i's energy that expert e supplies. In static
regions it is constant. In dynamic regions its gradient is part of forces and stress.
Each expert computes the rows of the atoms with a gate above zero, and of a halo if
it passes messages. Rows are rebuilt when atoms have moved by half the skin. Numbers
of rows, neighbours and atoms are padded to a few sizes, so that one compiled
program serves many structures.
"""

import contextlib
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress
from jaxtyping import Bool, Float, Int

from moe_md import checkpoint as checkpoints
from moe_md import memory
from moe_md.checkpoint import Checkpoint
from moe_md.checks import check_count, check_keywords
from moe_md.interfaces import ase_gates, cached_rows
from moe_md.interfaces.ase_arguments import (
    CalculatorInputs,
    calculator_inputs,
    checked_device,
    device_of,
    frozen,
    read_only,
    same_inputs,
)
from moe_md.interfaces.cached_rows import ReferenceGeometry
from moe_md.neighbors.rows import closer, image_pairs
from moe_md.regions import Fixed

KEYWORDS = ("checkpoint", "region", "dtype", "device", "chunk_size", "dr_threshold")
ASE_KEYWORDS = ("atoms", "directory", "label")


class MixtureCalculator(Calculator):
    """Energies, forces and stress of a mixture, and energies and stresses of each atom.

    Args:
        checkpoint: a `Checkpoint`, or a name or path for `mm.load`.
        region: which expert computes which atom: an expert's number for all
            atoms, `[n_atoms]` numbers, any region of `mm.regions`, or a
            function of the ASE atoms that returns one of these. 0 is the most
            expensive expert. Dynamic regions (`around`, `coordination`, ...)
            conserve energy. With a function whose assignment changes as atoms
            move, the energy jumps. It may be changed later, `calc.region = ...`;
            other arguments may not.
        dtype: "float64" (jax's global setting is not changed) or "float32".
        device: "cpu", "gpu", "tpu", "cuda" or a `jax.Device`; default jax's own.
        chunk_size: rows computed at a time.
        dr_threshold: Å, skin of the neighbour lists. They are rebuilt when an atom
            has moved by half of it, or by less where the cell has changed.
        **ase_keywords: `atoms`, `directory` and `label` of ASE's `Calculator`.

    Raises:
        TypeError: a keyword is unknown.
        ValueError: an argument is out of range, or jax has no such device; on use,
            the checkpoint lacks a chemical symbol, or the region does not fit the atoms.

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
        device: str | jax.Device | None = None,
        chunk_size: int = 64,
        dr_threshold: float = 0.4,
        **ase_keywords,
    ):
        check_keywords("MixtureCalculator", ase_keywords, (*KEYWORDS, *ASE_KEYWORDS))
        if dtype not in ("float32", "float64"):
            raise ValueError(f"dtype must be 'float32' or 'float64', got {dtype!r}.")
        if not (np.isfinite(dr_threshold) and dr_threshold >= 0):
            raise ValueError(f"dr_threshold must be a length (Å), at least 0, got {dr_threshold}.")
        if not isinstance(checkpoint, Checkpoint):
            checkpoint = checkpoints.load(checkpoint)
        self._dtype = np.dtype(dtype)
        self._device = checked_device(device)
        self._checkpoint = checkpoint._replace(params=self._placed(checkpoint.params))
        self._chunk_size = check_count("chunk_size", chunk_size, 1)
        self._dr_threshold = self._skin = float(dr_threshold)
        self._evaluators = [cached_rows.evaluator(e, chunk_size) for e in checkpoint.experts]
        self._inputs: CalculatorInputs | None = None  # of the present results
        self.region = region
        super().__init__(**ase_keywords)

    checkpoint = read_only("checkpoint", "The `Checkpoint`, with parameters that cannot be written to.")
    dtype = read_only("dtype", "Of positions, parameters and energies.")
    device = read_only("device", "The `jax.Device`; None for jax's default.")
    chunk_size = read_only("chunk_size", "Rows computed at a time.")
    dr_threshold = read_only("dr_threshold", "Å, skin of the neighbour lists.")

    @property
    def region(self):
        """Which expert computes which atom, as the argument; a new one discards the results."""
        return self._region

    @region.setter
    def region(self, region) -> None:
        if not callable(region) and not _has_gate(region):
            self._assignment_of(region, None)
        self._region, self._cache, self.results = region, None, {}
        self._warn_of_domains = cached_rows.DomainWarning()

    def set(self, **kwargs) -> dict:
        """Change `region`, the only parameter that may be changed; `TypeError` for any other keyword."""
        check_keywords("MixtureCalculator.set", kwargs, ("region",))
        for name, value in kwargs.items():
            setattr(self, name, value)
        return kwargs

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list:
        """What has changed since the last result: properties of the atoms, or else "region".

        "region" stands for region and parameters, also for a function whose result
        has changed, by tags for example.
        """
        changes = super().check_state(atoms, tol)
        if changes or self._inputs is None or same_inputs(self._inputs, self._inputs_of(atoms)[1]):
            return changes
        return ["region"]

    def _placed(self, params):
        """Parameters that cannot be written to, on the device where one is given."""
        with self._precision():
            return frozen(params) if self._device is None else jax.device_put(frozen(params), self._device)

    def _inputs_of(self, atoms: Atoms) -> tuple[Any, CalculatorInputs]:
        """The region of these atoms, and a record of region and parameters."""
        region = self.region(atoms) if callable(self.region) else self.region
        return region, calculator_inputs(region, self.checkpoint.params)

    def calculate(
        self, atoms: Atoms | None = None, properties=("energy",), system_changes=all_changes
    ) -> None:
        """Fill `results` with every property that the cell allows.

        Raises:
            MemoryError: memory is exhausted; lower `chunk_size`.
            RuntimeError: the process was forked after a calculator had computed.
        """
        super().calculate(atoms, properties, system_changes)
        atoms = cast(Atoms, self.atoms)
        has_volume = atoms.cell.rank == 3
        if {"stress", "stresses"} & set(properties) and not has_volume:
            raise PropertyNotImplementedError(
                f"stress needs a cell with a volume, three independent vectors, got {atoms.cell.tolist()}."
            )
        cached_rows.check_process()
        species = self._species_of(atoms)
        region, self._inputs = self._inputs_of(atoms)
        geometry = cached_rows.reference_geometry(atoms, species)
        with memory.naming(memory.of_chunk_size(self._chunk_size)), self._precision():
            result = None
            if self._cache is not None and self._is_valid(self._cache, geometry):
                result = self._compute(self._cache, geometry, region)
            if result is None:
                self._cache = self._build_cache(geometry, region)
                result = self._compute(self._cache, geometry, region)
        gate, by_expert, forces, virials = result
        energies = np.sum(gate * by_expert, axis=1)
        energy = float(energies.sum())
        self.results = {"energy": energy, "free_energy": energy, "energies": energies, "forces": forces}
        if has_volume:
            # Per-atom stresses are divided by the volume of the cell and add up to the stress, as in ASE.
            stresses = full_3x3_to_voigt_6_stress(virials / atoms.get_volume())
            self.results |= {"stresses": stresses, "stress": stresses.sum(axis=0)}

    def __getstate__(self) -> dict:
        """For pickle: without compiled functions and rows, which are made again; a device by its name."""
        device = self._device and (self._device.platform, self._device.id)
        params = jax.tree.map(np.asarray, self._checkpoint.params)
        kept = {"_checkpoint": self._checkpoint._replace(params=params), "_device": device}
        return {**vars(self), **kept, "_evaluators": None, "_cache": None, "_inputs": None}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._device = state["_device"] and device_of(*state["_device"])
        self._checkpoint = self._checkpoint._replace(params=self._placed(self._checkpoint.params))
        self._evaluators = [cached_rows.evaluator(e, self._chunk_size) for e in self.checkpoint.experts]

    def _is_valid(self, cache: "_Cache", geometry: ReferenceGeometry) -> bool:
        """Whether the cached rows contain all neighbours, and the gates' list is complete in this cell."""
        if cached_rows.needs_rebuild(cache.geometry, geometry, self._max_cutoff, self._skin):
            return False
        return cache.complete_within <= ase_gates.minimum_image_range(geometry)

    def _build_cache(self, geometry: ReferenceGeometry, region) -> "_Cache":
        """Rows of each expert and the neighbours for gates, from one list of pairs."""
        previous = self._cache
        n_atoms, max_cutoff = len(geometry.position), self._max_cutoff
        offsets = cached_rows.lattice_offsets(geometry)
        near_origin = cached_rows.near_origin(geometry, offsets)
        pairs = image_pairs(near_origin.position, geometry.cell, geometry.pbc, max_cutoff + self._skin)
        idx, complete_within = ase_gates.gate_neighbors(geometry, pairs, max_cutoff, self._skin)
        inputs = self._gate_inputs(geometry, offsets, idx, region)
        gate = self._gate(region, inputs, complete_within)
        support = gate > 0
        if _has_gate(region):
            ase_gates.warn_of_wide_spheres(region, inputs)
            support |= np.asarray(
                ase_gates.support(region, inputs, cutoff=complete_within, margin=self._skin)
            )
        self._warn_of_domains(self.checkpoint.experts, gate > 0, geometry, pairs)
        rows, max_neighbors = [], []
        for e, expert in enumerate(self.checkpoint.experts):
            own = np.flatnonzero(support[:, e])
            near, wide = closer(pairs, expert.cutoff), closer(pairs, expert.cutoff + self._skin)
            halo = _halo(expert.num_hops, wide, n_atoms, own)
            previous_rows = previous.rows[e] if previous else None
            rows.append(
                cached_rows.build(
                    near_origin, wide, expert.cutoff + self._skin, own, halo, self._dtype, previous_rows
                )
                if len(own)
                else None
            )
            previous_size = previous.max_neighbors[e] if previous else None
            max_neighbors.append(cached_rows.max_neighbors_for(expert, near, own, previous_size))
        return _Cache(geometry, offsets, idx, complete_within, support, rows, max_neighbors)

    def _compute(self, cache: "_Cache", geometry: ReferenceGeometry, region):
        """Gates, energies by expert, forces and virials of atoms; None where the cached rows do not suffice.

        They do not where an atom outside of the cached support has a gate above
        zero, or where a packed row overflows.
        """
        n_atoms = len(geometry.position)
        padding = (0, cached_rows.bucket_size(n_atoms) - n_atoms)
        inputs = self._gate_inputs(geometry, cache.offsets, cache.idx, region)
        gate = self._gate(region, inputs, cache.complete_within)
        if ((gate > 0) & ~cache.support).any():
            return None
        near_origin = cached_rows.near_origin(geometry, cache.offsets)
        padded_position = np.pad(near_origin.position.astype(self._dtype), (padding, (0, 0)))
        padded_gate = np.pad(gate.astype(self._dtype), (padding, (0, 0)))
        # All experts are dispatched before the first result is awaited.
        contributions = {
            e: self._evaluators[e](
                self.checkpoint.params[e],
                rows,
                padded_position,
                inputs.cell,
                padded_gate[:, e],
                cache.max_neighbors[e],
            )
            for e, rows in enumerate(cache.rows)
            if rows is not None and (gate[:, e] > 0).any()
        }
        by_expert = np.zeros(gate.shape)
        forces, virials = np.zeros((n_atoms, 3)), np.zeros((n_atoms, 3, 3))
        for e, part in contributions.items():
            if cache.max_neighbors[e] is not None and int(part.max_occupancy) > cache.max_neighbors[e]:
                return None
            by_expert[:, e] = part.energies[:n_atoms]
            forces += np.asarray(part.forces, float)[:n_atoms]
            virials += np.asarray(part.virials, float)[:n_atoms]
        if _has_gate(region) and region.is_dynamic:
            gate_forces, gate_virials = ase_gates.gate_forces_and_virials(
                region, inputs, by_expert.astype(self._dtype), cutoff=cache.complete_within
            )
            forces += np.asarray(gate_forces, float)
            virials += np.asarray(gate_virials, float)
        return gate, by_expert, forces, virials

    @property
    def _max_cutoff(self) -> float:
        return max(e.cutoff for e in self.checkpoint.experts)

    def _precision(self) -> contextlib.ExitStack:
        """Precision and device of the calculator, while jax computes."""
        context = contextlib.ExitStack()
        if self._dtype == np.float64:
            context.enter_context(jax.enable_x64(True))
        if self._device is not None:
            context.enter_context(jax.default_device(self._device))
        return context

    def _gate_inputs(
        self, geometry: ReferenceGeometry, offsets: np.ndarray, idx: np.ndarray, region
    ) -> ase_gates.GateInputs:
        if getattr(region, "is_translation_invariant", False):
            geometry = cached_rows.near_origin(geometry, offsets)
        return ase_gates.GateInputs(
            geometry.position.astype(self._dtype),
            geometry.cell.astype(self._dtype),
            geometry.pbc,
            geometry.species,
            idx,
        )

    def _gate(self, region, inputs: ase_gates.GateInputs, complete_within: float) -> np.ndarray:
        """`[n_atoms, n_experts]` gates; `inputs.idx` is complete up to `complete_within`, Å."""
        n_atoms, n_experts = len(inputs.position), len(self.checkpoint.experts)
        if not _has_gate(region):
            return np.eye(n_experts)[self._assignment_of(region, n_atoms)]
        gate = np.asarray(ase_gates.gate(region, inputs, cutoff=complete_within), float)
        if gate.shape != (n_atoms, n_experts):
            raise ValueError(
                f"region must give a gate for each of the {n_atoms} atoms and {n_experts} experts, "
                f"got shape {gate.shape}. Use a region of {n_experts} experts."
            )
        if not np.isfinite(gate).all():
            raise ValueError(
                f"region must give finite gates for the {n_atoms} atoms, got NaN or infinity. "
                f"Use seeds from 0 to {n_atoms - 1} and finite parameters."
            )
        return gate

    def _species_of(self, atoms) -> np.ndarray:
        known = self.checkpoint.experts[0].species
        unknown = sorted(set(atoms.symbols) - set(known))
        if unknown:
            raise ValueError(f"atoms must be of the checkpoint's species {known}, got {', '.join(unknown)}.")
        return np.array([known.index(s) for s in atoms.symbols], np.int32)

    def _assignment_of(self, region, n_atoms: int | None) -> np.ndarray:
        values = np.asarray(region.assignment if isinstance(region, Fixed) else region)
        if values.ndim > 1 or not np.issubdtype(values.dtype, np.integer):
            raise ValueError(
                "region must be an expert's number, one number for each atom, a region or a function, "
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


class _Cache(NamedTuple):
    """Rows and neighbours that are reused until atoms have moved by half the skin."""

    geometry: ReferenceGeometry  # at which they were built
    offsets: Float[np.ndarray, "atoms 3"]  # `lattice_offsets`, subtracted before positions are cast
    idx: Int[np.ndarray, "atoms K"]  # neighbours that gates are computed from
    complete_within: float  # Å, distance within which `idx` holds all neighbours
    support: Bool[np.ndarray, "atoms experts"]  # atoms for which an expert has rows
    rows: list  # `CachedRows` of each expert; None for an expert without atoms
    max_neighbors: list  # of each expert, columns of its packed rows (`max_neighbors_for`)


def _has_gate(region) -> bool:
    return hasattr(region, "gate") and not isinstance(region, Fixed)


def _halo(num_hops: int, pairs, n_atoms: int, owned: np.ndarray) -> np.ndarray:
    """Atoms whose rows an expert that passes messages needs in addition to the owned ones."""
    i, j, _ = pairs
    reached = np.zeros(n_atoms, bool)
    reached[owned] = True
    for _ in range(num_hops - 1):
        reached[j[reached[i]]] = True
    reached[owned] = False
    return np.flatnonzero(reached)
