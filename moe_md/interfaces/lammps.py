"""The mixture inside LAMMPS, on any number of ranks, through `fix external`.

    E = sum_i sum_e w_ie E_ie,  F = -dE/dR

LAMMPS takes forces on the atoms that a rank owns, and on no others. Each rank
therefore computes every row and every gate whose energy depends on an owned atom,
also those of ghosts, and sums the energies of its own atoms only. Ghosts must
extend to

    halo = max(2 r_E, r_E + R_g, 2 R_g)

with r_E the longest cutoff (times the hops, of experts that pass messages) and R_g
the interaction range of gates (`r_core + r_blend` of `around`). With a narrower
halo forces are wrong and the energy drifts. `attach` sets the halo, and ghosts are
counted as each run begins.
"""

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree  # ty: ignore[missing-module-member]  # compiled, without a stub

from moe_md import checkpoint as checkpoints
from moe_md.checkpoint import Checkpoint
from moe_md.checks import check_count, check_positive
from moe_md.interfaces import ase_gates, cached_rows
from moe_md.interfaces.cached_rows import ReferenceGeometry
from moe_md.interfaces.lammps_atoms import (
    check_masses,
    check_number,
    check_same_atoms,
    checked_n_atoms,
    set_virials,
    store_ids,
    voigt,
)
from moe_md.interfaces.lammps_ghosts import check_ghosts, copy_of_atoms
from moe_md.neighbors.rows import closer, image_pairs
from moe_md.regions.protocol import Region, check_region
from moe_md.renamed import missing_attribute

PADDING_POSITION = 1e6  # Å, x of the first padded atom


def halo(checkpoint: Checkpoint, region: Region) -> float:
    """Å, the distance to which ghosts must extend, without the skin of LAMMPS's lists.

    Raises:
        ValueError: LAMMPS cannot use regions of this kind.

    >>> import moe_md as mm
    >>> expert = mm.experts.lennard_jones(("Pt",), 5.0)
    >>> halo(mm.Checkpoint((expert, expert), ({}, {}), {}, {}), mm.regions.around([0], 4.0, 2.0))
    12.0
    """
    expert_range = max(e.cutoff * e.num_hops for e in checkpoint.experts)
    check_region(region, "interaction_range", "neighbor_cutoff", "restrict", "check_size")
    gate_range = region.interaction_range()
    return max(2 * expert_range, expert_range + gate_range, 2 * gate_range)


def attach(
    lmp,
    checkpoint,
    region,
    elements: Sequence[str],
    *,
    fix_id: str = "moe",
    skin: float = 1.0,
    dtype: str = "float64",
    chunk_size: int = 64,
) -> "RankPotential":
    """Let a mixture drive the atoms of LAMMPS.

    Sets LAMMPS's `neighbor` and `comm_modify cutoff`, and a `fix external` whose
    energy and virial LAMMPS adds to its own.

    Args:
        lmp: a `lammps.lammps` of units `metal` with its box and atoms. Atom ids run
            from 1 to the number of atoms; atom `id` is atom `id - 1` of the region.
        checkpoint: a `Checkpoint`, or a name or path for `mm.load`.
        region: from `mm.regions`, except `custom` and `reassigned`.
        elements: the chemical symbol of each LAMMPS type.
        fix_id: id of the fix.
        skin: Å, of LAMMPS's lists and of the rows.
        dtype: "float64" (jax's global setting is not changed) or "float32".
        chunk_size: rows computed at a time.

    Returns:
        The `RankPotential` of this rank. An error during a run is printed and ends
        the program on all ranks; LAMMPS would otherwise continue with the
        forces of an earlier step.

    Raises:
        ValueError: an argument is out of range, or `lmp` does not fit it: its units,
            ids, types or the masses of these, or another mixture drives its atoms.
    """
    potential = RankPotential(checkpoint, region, elements, skin=skin, dtype=dtype, chunk_size=chunk_size)
    n_atoms = checked_n_atoms(lmp, elements)
    region.check_size(n_atoms, len(potential.checkpoint.experts))
    store_ids(lmp, fix_id)
    lmp.command(f"neighbor {skin!r} bin")
    lmp.command("neigh_modify every 1 delay 0 check yes")
    lmp.command(f"comm_modify mode single cutoff {potential.halo + skin + 1e-6!r}")
    lmp.command(f"fix {fix_id} all external pf/callback 1 1")
    lmp.command(f"fix_modify {fix_id} energy yes virial yes")
    lmp.set_fix_external_callback(fix_id, _callback(lmp, potential, fix_id, n_atoms), lmp)
    return potential


def _callback(lmp, potential: "RankPotential", fix_id: str, n_atoms: int) -> Callable:
    """The function that `fix external` calls in each step; it sets energies, virials and forces."""
    comm = lmp.get_mpi_comm()
    last_step: list = [None]

    def callback(_, step, n_local, tag, x, f):
        del tag, x
        try:
            n_all = n_local + lmp.extract_setting("nghost")
            position, types, ids = (copy_of_atoms(lmp, name, n_all) for name in ("x", "type", "id"))
            if last_step[0] != step - 1:
                # A run begins. A minimiser calls several times in one step, when ghosts have moved.
                check_masses(lmp, potential.elements)
                check_same_atoms(lmp, comm, ids[:n_local], n_atoms)
                margin = potential.skin if last_step[0] != step else 0.0
                check_ghosts(lmp, comm, position, ids, n_local, potential.halo + margin)
            last_step[0] = step
            check_number(n_atoms, ids.max(initial=0))
            energies, forces, virials = potential.compute(position, types, ids, n_local)
            virials = -voigt(virials)
            *virial, energy, total = comm.allreduce(np.array([*virials.sum(axis=0), energies.sum(), n_local]))
            check_number(n_atoms, int(total), exact=True)
            lmp.fix_external_set_energy_global(fix_id, float(energy))
            lmp.fix_external_set_virial_global(fix_id, [float(v) for v in virial])
            lmp.fix_external_set_energy_peratom(fix_id, energies.tolist())
            set_virials(lmp, fix_id, virials)
            if n_local:
                f[:] = forces
        except BaseException as error:
            # ctypes prints exceptions of a callback and LAMMPS continues; end the program instead.
            if isinstance(error, ValueError):
                print(f"moe_md: error: step {step}: {error}", file=sys.stderr)
            else:
                traceback.print_exc()
            sys.stderr.flush()
            comm.Abort(1)
            os._exit(1)

    return callback


class RankPotential:
    """The mixture over the atoms and ghosts of one rank. Arguments as of `attach`."""

    halo: float  # Å, without skin
    skin: float  # Å
    elements: tuple[str, ...]  # of LAMMPS's types

    def __init__(
        self,
        checkpoint,
        region: Region,
        elements: Sequence[str],
        *,
        skin: float = 1.0,
        dtype: str = "float64",
        chunk_size: int = 64,
    ):
        if dtype not in ("float32", "float64"):
            raise ValueError(f"dtype must be 'float32' or 'float64', got {dtype!r}.")
        check_positive("skin", skin)
        check_count("chunk_size", chunk_size, 1)
        if not isinstance(checkpoint, Checkpoint):
            checkpoint = checkpoints.load(checkpoint)
        known = checkpoint.experts[0].species
        if isinstance(elements, str) or len(elements) == 0 or not set(elements) <= set(known):
            raise ValueError(
                "elements must be a list of chemical symbols "
                f"among the checkpoint's species {known}, got {elements!r}."
            )
        self.halo = halo(checkpoint, region)
        self.checkpoint = checkpoint
        self.region = region
        self.elements = tuple(elements)
        self._species_of_type = np.array([known.index(e) for e in elements], np.int32)
        self.skin = float(skin)
        self._dtype = np.dtype(dtype)
        self._evaluators = [cached_rows.evaluator(e, chunk_size) for e in checkpoint.experts]
        self._gate_range = region.interaction_range()
        self._neighbor_cutoff = region.neighbor_cutoff()
        self._cache: _RankCache | None = None
        self._warn_of_domains = cached_rows.DomainWarning()

    def compute(
        self,
        position: Float[np.ndarray, "atoms 3"],
        types: Int[np.ndarray, " atoms"],
        ids: Int[np.ndarray, " atoms"],
        n_local: int,
    ) -> tuple[
        Float[np.ndarray, " {n_local}"], Float[np.ndarray, "{n_local} 3"], Float[np.ndarray, "{n_local} 3 3"]
    ]:
        """Energies, forces and virials of owned atoms.

        Args:
            position: Å, of owned atoms, then of ghosts.
            types: LAMMPS's, from 1.
            ids: LAMMPS's, from 1.
            n_local: number of owned atoms.

        Returns:
            energies, eV, forces, eV/Å, and their parts of dE/d strain, eV, which add up over ranks.

        Raises:
            ValueError: positions are not finite, or two atoms coincide.
        """
        if n_local == 0:
            self._cache = None
            return np.zeros(0), np.zeros((0, 3)), np.zeros((0, 3, 3))
        if not np.isfinite(position).all():
            raise ValueError("position must be finite, got NaN or infinity.")
        cache = self._cache
        geometry = self._padded_geometry(position, types)
        same_atoms = cache is not None and cache.n_local == n_local and np.array_equal(cache.ids, ids)
        with jax.enable_x64(True) if self._dtype == np.float64 else contextlib.nullcontext():
            result = None
            # With the same owned atoms and ghosts, and small displacements, no new pair can have formed.
            if same_atoms and not cached_rows.needs_rebuild(cache.geometry, geometry, 0.0, self.skin):
                result = self._compute(cache, geometry)
            if result is None:
                self._cache = self._build_cache(geometry, len(position), ids, n_local)
                result = self._compute(self._cache, geometry)
        return result

    def _padded_geometry(self, position: np.ndarray, types: np.ndarray) -> ReferenceGeometry:
        """Owned atoms and ghosts, not periodic, and one or more padded atoms far away from them."""
        n_all = len(position)
        previous_size = len(self._cache.geometry.position) if self._cache else 0
        size = cached_rows.reuse_bucket(cached_rows.bucket_size(n_all + 1), previous_size)
        padding = np.zeros((size - n_all, 3))
        padding[:, 0] = PADDING_POSITION + 1e3 * np.arange(len(padding))
        species = np.pad(self._species_of_type[types - 1], (0, len(padding)))
        return ReferenceGeometry(np.concatenate([position, padding]), np.eye(3), np.zeros(3, bool), species)

    def _build_cache(
        self, geometry: ReferenceGeometry, n_all: int, ids: np.ndarray, n_local: int
    ) -> "_RankCache":
        """Rows whose energies may depend on owned atoms until atoms have moved by half the skin."""
        previous, skin = self._cache, self.skin
        experts = self.checkpoint.experts
        n = len(geometry.position)
        region = self.region.restrict(np.pad(ids - 1, (0, n - n_all), constant_values=-1))
        max_cutoff = max([*(e.cutoff for e in experts), self._neighbor_cutoff])
        pairs = image_pairs(geometry.position[:n_all], geometry.cell, geometry.pbc, max_cutoff + skin)
        idx, complete_within = ase_gates.gate_neighbors(geometry, pairs, self._neighbor_cutoff, skin)
        distance_to_owned = np.zeros(n)
        owned = cKDTree(geometry.position[:n_local])
        distance_to_owned[n_local:] = owned.query(geometry.position[n_local:])[0]
        cache = _RankCache(
            n_local,
            ids.copy(),
            geometry,
            geometry.position[:n_all].mean(axis=0),
            region,
            idx,
            complete_within,
            distance_to_owned,
            np.zeros(0),
            [],
            [],
        )
        computed = self._gate(cache, geometry) > 0
        self._warn_of_domains(self.checkpoint.experts, computed[:n_local], geometry, pairs)
        support = computed | np.asarray(
            ase_gates.support(region, self._gate_inputs(cache, geometry), cutoff=complete_within, margin=skin)
        )
        for e, expert in enumerate(experts):
            interaction_range = max(expert.cutoff * expert.num_hops, self._gate_range)
            own = np.flatnonzero(support[:, e] & (distance_to_owned <= interaction_range + skin))
            halo_atoms = np.zeros(0, int)
            if expert.num_hops > 1:
                halo_atoms = np.setdiff1d(np.flatnonzero(distance_to_owned <= self.halo + skin), own)
            near, wide = closer(pairs, expert.cutoff), closer(pairs, expert.cutoff + skin)
            rows, size = (previous.rows[e], previous.max_neighbors[e]) if previous else (None, None)
            cache.rows.append(
                cached_rows.build(geometry, wide, expert.cutoff + skin, own, halo_atoms, self._dtype, rows)
                if len(own)
                else None
            )
            cache.max_neighbors.append(cached_rows.max_neighbors_for(expert, near, own, size))
        return cache._replace(support=support)

    def _compute(self, cache: "_RankCache", geometry: ReferenceGeometry):
        """What `compute` returns; None where the cached rows do not suffice.

        They do not where an atom outside of the cached support has a gate above
        zero, or where a packed row overflows.
        """
        n_local, skin = cache.n_local, self.skin
        gate = self._gate(cache, geometry)
        blended = np.zeros(len(gate), bool)
        if self.region.is_dynamic:
            blended = ((gate > 0) & (gate < 1)).any(axis=1)
            blended &= cache.distance_to_owned <= self._gate_range + skin
        expert_range = np.array([e.cutoff * e.num_hops for e in self.checkpoint.experts])
        contributes = (cache.distance_to_owned[:, None] <= expert_range + skin) | blended[:, None]
        gate = np.where(contributes, gate, 0.0)
        if ((gate > 0) & ~cache.support).any():
            return None
        near_origin = geometry.position - cache.origin
        position, cell, cast_gate = (x.astype(self._dtype) for x in (near_origin, geometry.cell, gate))
        contributions = {
            e: self._evaluators[e](
                self.checkpoint.params[e], rows, position, cell, cast_gate[:, e], cache.max_neighbors[e]
            )
            for e, rows in enumerate(cache.rows)
            if rows is not None and (gate[:, e] > 0).any()
        }
        by_expert, forces = np.zeros(gate.shape), np.zeros((n_local, 3))
        virials = np.zeros((n_local, 3, 3))
        for e, part in contributions.items():
            if cache.max_neighbors[e] is not None and int(part.max_occupancy) > cache.max_neighbors[e]:
                return None
            by_expert[:, e] = part.energies
            forces += np.asarray(part.forces, float)[:n_local]
            virials += np.asarray(part.virials, float)[:n_local]
        if self.region.is_dynamic:
            # Where a gate is 0 or 1 its gradient is zero, so only energies of blended atoms enter.
            energies = np.where(blended[:, None], by_expert, 0.0).astype(self._dtype)
            gate_forces, gate_virials = ase_gates.gate_forces_and_virials(
                cache.region, self._gate_inputs(cache, geometry), energies, cutoff=cache.complete_within
            )
            forces += np.asarray(gate_forces, float)[:n_local]
            virials += np.asarray(gate_virials, float)[:n_local]
        return np.sum(gate * by_expert, axis=1)[:n_local], forces, virials

    def _gate_inputs(self, cache: "_RankCache", geometry: ReferenceGeometry) -> ase_gates.GateInputs:
        origin = cache.origin if getattr(cache.region, "is_translation_invariant", False) else 0.0
        return ase_gates.GateInputs(
            (geometry.position - origin).astype(self._dtype),
            geometry.cell.astype(self._dtype),
            geometry.pbc,
            geometry.species,
            cache.idx,
        )

    def _gate(self, cache: "_RankCache", geometry: ReferenceGeometry) -> np.ndarray:
        """`[n, n_experts]` gates, 0 for padded atoms.

        Ghosts near the edge of the halo lack neighbours. Their gates are not used.
        """
        inputs = self._gate_inputs(cache, geometry)
        gate = np.array(ase_gates.gate(cache.region, inputs, cutoff=cache.complete_within), float)
        gate[len(cache.ids) :] = 0.0
        return gate


class _RankCache(NamedTuple):
    """Rows and neighbours, reused while a rank holds the same atoms and they move by less than half the skin.

    `n` is the padded number of owned atoms and ghosts.
    """

    n_local: int  # owned atoms
    ids: Int[np.ndarray, " owned_and_ghosts"]  # LAMMPS's, from 1
    geometry: ReferenceGeometry  # of n atoms
    origin: Float[np.ndarray, "3"]  # Å, subtracted before positions are cast
    region: Region  # of n atoms
    idx: Int[np.ndarray, "n K"]  # neighbours that gates are computed from
    complete_within: float  # Å, distance within which `idx` holds all neighbours
    distance_to_owned: Float[np.ndarray, " n"]  # Å, to the nearest owned atom
    support: Bool[np.ndarray, "n experts"]  # atoms whose gate may be above zero
    rows: list  # `CachedRows` of each expert; None for an expert without atoms
    max_neighbors: list  # of each expert, columns of its packed rows (`max_neighbors_for`)


def __getattr__(name: str):
    raise missing_attribute(__name__, name)
