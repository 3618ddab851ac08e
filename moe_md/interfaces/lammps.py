"""The mixture inside LAMMPS, on any number of ranks, through `fix external`.

    E = sum_i sum_e w_ie E_ie,  F = -dE/dR

LAMMPS takes back forces on the atoms that a rank owns, and no others. So each
rank computes every row and every weight that an owned atom moves, those of
ghosts among them, and counts the energies of its own atoms only. Ghosts must
reach as far as

    halo = max(2 r_E, r_E + R_g, 2 R_g)

with r_E the longest cutoff (times its hops, of experts that pass messages) and
R_g how far gates look (`r_core + r_blend` of `around`). A halo too narrow
would not crash but drift, so it is set here and checked as each run begins.
"""

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from scipy.spatial import cKDTree  # ty: ignore[missing-module-member]  # compiled, without a stub

from moe_md import checkpoint as checkpoints
from moe_md.checkpoint import Checkpoint
from moe_md.checks import check_count, check_positive
from moe_md.experts.domain import warn_out_of_domain
from moe_md.interfaces import ase_gates, cached_rows
from moe_md.interfaces.cached_rows import When
from moe_md.neighbors.rows import closer, image_pairs
from moe_md.regions.protocol import Region, check_region

FAR = 1e6  # Å, where atoms stand that only fill arrays
PROBES = 16  # atoms of a rank whose ghosts are counted as a run begins


def halo(checkpoint: Checkpoint, region: Region) -> float:
    """Å, how far ghosts must reach, without the skin of LAMMPS's lists.

    Raises:
        ValueError: a region that LAMMPS cannot hold.

    >>> import moe_md as mm
    >>> expert = mm.experts.lennard_jones(("Pt",), 5.0)
    >>> halo(mm.Checkpoint((expert, expert), ({}, {}), {}, {}), mm.regions.around([0], 4.0, 2.0))
    12.0
    """
    check_region(region, "interaction_range", "neighbor_cutoff", "restrict", "check_size")
    sight, gate = max(e.cutoff * e.num_hops for e in checkpoint.experts), region.interaction_range()
    return max(2 * sight, sight + gate, 2 * gate)


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
) -> "Coupling":
    """Let a mixture drive the atoms of LAMMPS.

    Sets LAMMPS's `neighbor` and `comm_modify cutoff`, and a `fix external`
    whose energy and virial LAMMPS counts in.

    Args:
        lmp: a `lammps.lammps` of units `metal`, with its box and atoms, whose
            ids are 1 to the number of atoms; atom `id` is atom `id - 1` of the region.
        checkpoint: a `Checkpoint`, or what `mm.load` takes.
        region: of `mm.regions`, no `custom` and no `reassigned`.
        elements: the chemical symbol of each LAMMPS type.
        fix_id: name of the fix.
        skin: Å, of LAMMPS's lists and of the rows, which are kept meanwhile.
        dtype: "float64" (jax's own setting is left as it is) or "float32".
        chunk_size: rows computed at a time.

    Returns:
        A `Coupling`. What goes wrong during a run ends the program on all
        ranks, after a traceback: LAMMPS would go on with stale forces.

    Raises:
        ValueError: an argument does not fit.
    """
    coupling = Coupling(checkpoint, region, elements, skin=skin, dtype=dtype, chunk_size=chunk_size)
    if lmp.extract_global("units") != "metal":
        raise ValueError(f"lmp must have units metal, got {lmp.extract_global('units')}.")
    if not lmp.extract_setting("box_exist"):
        raise ValueError("lmp must have its box and its atoms, got neither.")
    if lmp.extract_setting("ntypes") != len(elements):
        raise ValueError(
            f"elements must name each of the {lmp.extract_setting('ntypes')} types of lmp, "
            f"got {list(elements)}."
        )
    n_atoms, comm = int(lmp.get_natoms()), lmp.get_mpi_comm()
    if comm is None:
        raise ValueError(
            "lmp must run under mpi4py, which is not installed or is of another MPI than LAMMPS."
        )
    ids = np.sort(np.concatenate(comm.allgather(_of_atoms(lmp, "id", lmp.extract_setting("nlocal")))))
    if not np.array_equal(ids, np.arange(1, n_atoms + 1)):
        raise ValueError(
            f"lmp must number its atoms from 1 to {n_atoms}, "
            f"got ids from {ids.min(initial=0)} to {ids.max(initial=0)}."
        )
    region.check_size(n_atoms, len(coupling.checkpoint.experts))
    lmp.command(f"neighbor {skin!r} bin")
    lmp.command("neigh_modify every 1 delay 0 check yes")
    lmp.command(f"comm_modify mode single cutoff {coupling.halo + skin + 1e-6!r}")
    lmp.command(f"fix {fix_id} all external pf/callback 1 1")
    lmp.command(f"fix_modify {fix_id} energy yes virial yes")
    last: list = [None]

    def callback(_, step, n_local, tag, x, f):
        del tag, x
        try:
            n_held = n_local + lmp.extract_setting("nghost")
            position, types, ids = (_of_atoms(lmp, name, n_held) for name in ("x", "type", "id"))
            if last[0] != step - 1:
                # A minimiser comes back in one step, when ghosts are no longer new.
                _check_ghosts(
                    lmp, comm, position, ids, n_local, coupling.halo + (skin if last[0] != step else 0.0)
                )
            last[0] = step
            energies, forces, virial = coupling.compute(position, types, ids, n_local)
            total = comm.allreduce(np.append(_voigt(virial), energies.sum()))
            lmp.fix_external_set_energy_global(fix_id, float(total[6]))
            lmp.fix_external_set_virial_global(fix_id, (-total[:6]).tolist())
            lmp.fix_external_set_energy_peratom(fix_id, energies.tolist())
            if n_local:
                f[:] = forces
        except BaseException:
            # An exception would be printed and forgotten: LAMMPS called.
            traceback.print_exc()
            sys.stderr.flush()
            comm.Abort(1)
            os._exit(1)

    lmp.set_fix_external_callback(fix_id, callback, lmp)
    return coupling


class Coupling:
    """What a rank computes of the atoms that it holds; arguments as of `attach`."""

    halo: float  # Å, without skin

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
                f"among the species {known} that the checkpoint knows, got {elements!r}."
            )
        self.halo = halo(checkpoint, region)
        self.checkpoint = checkpoint
        self.region = region
        self._species_of_type = np.array([known.index(e) for e in elements], np.int32)
        self._skin = float(skin)
        self._dtype = np.dtype(dtype)
        self._evaluate = [cached_rows.evaluator(e, chunk_size) for e in checkpoint.experts]
        self._gate = region.interaction_range()
        self._held: _Held | None = None
        self._warned = False

    def compute(
        self, position: np.ndarray, types: np.ndarray, ids: np.ndarray, n_local: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Energies and forces of owned atoms, and their part of the virial.

        Args:
            position: `[n_held, 3]` Å, of owned atoms, then of ghosts.
            types: `[n_held]` int, LAMMPS's, from 1.
            ids: `[n_held]` int, LAMMPS's, from 1.
            n_local: number of owned atoms.

        Returns:
            energies `[n_local]` eV, forces `[n_local, 3]` eV/Å, dE/d strain `[3, 3]` eV.

        Raises:
            ValueError: positions are not finite, or two atoms are at one place.
        """
        if n_local == 0:
            self._held = None
            return np.zeros(0), np.zeros((0, 3)), np.zeros((3, 3))
        if not np.isfinite(position).all():
            raise ValueError("position must be finite, got NaN or infinity.")
        last = self._held
        now = self._padded(position, types)
        same = last is not None and last.n_local == n_local and np.array_equal(last.ids, ids)
        with jax.enable_x64(True) if self._dtype == np.float64 else contextlib.nullcontext():
            out = None
            # Ghosts are the same atoms and have moved little: no others can have come near.
            if same and not cached_rows.needs_rebuild(last.when, now, 0.0, self._skin):
                out = self._computed(last, now)
            if out is None:
                self._held = self._listed(now, len(position), ids, n_local)
                out = self._computed(self._held, now)
        return out

    def _padded(self, position: np.ndarray, types: np.ndarray) -> When:
        """All atoms of the rank, and at least one that is far away, in no cell."""
        n_held = len(position)
        spare = (
            cached_rows.kept(
                cached_rows.roomy(n_held + 1), len(self._held.when.position) if self._held else 0
            )
            - n_held
        )
        away = np.zeros((spare, 3))
        away[:, 0] = FAR + 1e3 * np.arange(spare)
        species = np.pad(self._species_of_type[types - 1], (0, spare))
        return When(np.concatenate([position, away]), np.eye(3), np.zeros(3, bool), species)

    def _listed(self, now: When, n_held: int, ids: np.ndarray, n_local: int) -> "_Held":
        """Rows that may matter to owned atoms while the skin lasts."""
        last, skin = self._held, self._skin
        experts = self.checkpoint.experts
        index = np.pad(ids - 1, (0, len(now.position) - n_held), constant_values=-1)
        region = self.region.restrict(index)
        reach = max([*(e.cutoff for e in experts), self.region.neighbor_cutoff()])
        pairs = image_pairs(now.position[:n_held], now.cell, now.pbc, reach + skin)
        idx, whole = ase_gates.neighbors_of_all(now, pairs, self.region.neighbor_cutoff(), skin)
        away = np.zeros(len(now.position))
        away[n_local:] = cKDTree(now.position[:n_local]).query(now.position[n_local:])[0]
        held = _Held(n_local, ids.copy(), now, region, idx, whole, away, np.zeros(0), [], [])
        support = np.array(ase_gates.support(region, self._place(held, now), cutoff=whole, margin=skin)) | (
            self._weights(held, now) > 0
        )
        self._check_domains(support[:n_local], now, pairs)
        for e, expert in enumerate(experts):
            sight = expert.cutoff * expert.num_hops
            own = np.flatnonzero(support[:, e] & (away <= max(sight, self._gate) + skin))
            like, slots = (last.rows[e], last.slots[e]) if last else (None, None)
            halo = np.zeros(0, int)
            if expert.num_hops > 1:
                halo = np.setdiff1d(np.flatnonzero(away <= self.halo + skin), own)
            near, wide = closer(pairs, expert.cutoff), closer(pairs, expert.cutoff + skin)
            held.rows.append(
                cached_rows.hold(now, wide, expert.cutoff + skin, own, halo, self._dtype, like)
                if len(own)
                else None
            )
            held.slots.append(cached_rows.slots_for(expert, near, own, slots))
        return held._replace(support=support)

    def _computed(self, held: "_Held", now: When):
        """What `compute` returns; None where the rows held do not do."""
        n_local, skin = held.n_local, self._skin
        weight = self._weights(held, now)
        shared = np.zeros(len(weight), bool)
        if self.region.is_dynamic:
            shared = ((weight > 0) & (weight < 1)).any(axis=1) & (held.away <= self._gate + skin)
        sights = np.array([e.cutoff * e.num_hops for e in self.checkpoint.experts])
        weight = np.where((held.away[:, None] <= sights + skin) | shared[:, None], weight, 0.0)
        if ((weight > 0) & ~held.support).any():
            return None
        position, cell, shares = (x.astype(self._dtype) for x in (now.position, now.cell, weight))
        parts = {
            e: self._evaluate[e](self.checkpoint.params[e], rows, position, cell, shares[:, e], held.slots[e])
            for e, rows in enumerate(held.rows)
            if rows is not None and (weight[:, e] > 0).any()
        }
        by_expert, forces, virial = np.zeros(weight.shape), np.zeros((n_local, 3)), np.zeros((3, 3))
        for e, part in parts.items():
            if held.slots[e] is not None and int(part.fullest) > held.slots[e]:
                return None
            by_expert[:, e] = part.energies
            forces += np.asarray(part.forces, float)[:n_local]
            virial += np.asarray(part.virials, float)[:n_local].sum(axis=0)
        if self.region.is_dynamic:
            # Where an expert has no weight, neither has its energy a slope.
            energies = np.where(shared[:, None], by_expert, 0.0).astype(self._dtype)
            force, strained = ase_gates.pull(held.region, self._place(held, now), energies, cutoff=held.whole)
            forces += np.asarray(force, float)[:n_local]
            virial += np.asarray(strained, float)[:n_local].sum(axis=0)
        return np.sum(weight * by_expert, axis=1)[:n_local], forces, virial

    def _place(self, held: "_Held", now: When) -> ase_gates.Place:
        return ase_gates.Place(
            now.position.astype(self._dtype), now.cell.astype(self._dtype), now.pbc, now.species, held.idx
        )

    def _weights(self, held: "_Held", now: When) -> np.ndarray:
        """`[n, n_experts]`, none for what is no atom; those at the rim of the ghosts mean nothing."""
        weight = np.array(ase_gates.weights(held.region, self._place(held, now), cutoff=held.whole), float)
        weight[len(held.ids) :] = 0.0
        return weight

    def _check_domains(self, support: np.ndarray, now: When, pairs) -> None:
        """Warn, once, of experts that compute atoms of this rank outside their domains."""
        if self._warned:
            return
        experts = self.checkpoint.experts
        counts = [
            cached_rows.n_out_of_domain(e, np.flatnonzero(computed), now, pairs)
            for e, computed in zip(experts, support.T)
        ]
        self._warned = not warn_out_of_domain(experts, np.array(counts), stacklevel=6)


class _Held(NamedTuple):
    """What is reused while a rank holds the same atoms and they move little.

    n counts atoms that fill arrays.
    """

    n_local: int
    ids: np.ndarray  # [n_held] int
    when: When  # of n atoms
    region: Region  # of n atoms
    idx: np.ndarray  # [n, K] int, for gates
    whole: float  # Å, up to which `idx` holds all neighbours, where gates ask for any
    away: np.ndarray  # [n] Å, to the nearest owned atom
    support: np.ndarray  # [n, n_experts] bool, atoms that may get weight
    rows: list  # `CachedRows` of each expert, None where it has no atom
    slots: list  # of each, as `slots_for` gives them


def _of_atoms(lmp, name: str, n: int) -> np.ndarray:
    """A copy of what LAMMPS knows of this rank's atoms; a rank without atoms has none."""
    shape = (0, 3) if name == "x" else (0,)
    return (
        np.array(lmp.numpy.extract_atom(name, nelem=n))
        if n
        else np.zeros(shape, float if name == "x" else int)
    )


def _voigt(virial: np.ndarray) -> np.ndarray:
    """LAMMPS's order: xx, yy, zz, xy, xz, yz."""
    return virial[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]]


def _check_ghosts(lmp, comm, position: np.ndarray, ids: np.ndarray, n_local: int, reach: float) -> None:
    """Raise where owned atoms miss ghosts within a distance.

    Those nearest to the rank's faces are looked at, and ghosts counted in the whole cell.
    """
    low, high, xy, yz, xz, periodic, _ = lmp.extract_box()
    x, y, z = np.subtract(high, low)
    cell = np.array([[x, 0, 0], [xy, y, 0], [xz, yz, z]])
    everyone = np.concatenate(comm.allgather(position[:n_local]))
    if n_local == 0:
        return
    inverse, pbc = np.linalg.inv(cell), np.asarray(periodic, bool)
    scaled = position[:n_local] @ inverse
    probes = np.unique(
        [*scaled.argmin(axis=0), *scaled.argmax(axis=0), *np.linspace(0, n_local - 1, PROBES - 6).astype(int)]
    )
    # Lattice vectors that may bring an atom, whichever image it is, within reach.
    spread = np.ptp(everyone @ inverse, axis=0)
    most = np.where(pbc, np.ceil(reach * np.linalg.norm(inverse, axis=0) + spread), 0).astype(int)
    shifts = (
        np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in most), indexing="ij"), axis=-1).reshape(-1, 3)
        @ cell
    )
    wanted = np.zeros(len(probes), int)
    for shift in shifts:
        images = everyone + shift
        inside = (
            (images >= position[probes].min(0) - reach) & (images <= position[probes].max(0) + reach)
        ).all(axis=1)
        away = np.linalg.norm(images[inside][None] - position[probes][:, None], axis=-1)
        wanted += (away < reach - 1e-6).sum(axis=1)
    held = (np.linalg.norm(position[None] - position[probes][:, None], axis=-1) < reach - 1e-6).sum(axis=1)
    worst = int(np.argmax(wanted - held))
    if wanted[worst] > held[worst]:
        raise ValueError(
            f"comm_modify cutoff must be at least {reach:.3f} Å, halo and skin, as `attach` sets it: "
            f"atom {ids[probes[worst]]} misses {wanted[worst] - held[worst]} ghosts within that distance, "
            "and forces would be wrong without a word."
        )
