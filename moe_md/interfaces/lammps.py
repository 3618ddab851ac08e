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
from typing import Sequence

import jax
import numpy as np
from scipy.spatial import cKDTree

from moe_md import checkpoint as checkpoints
from moe_md.checkpoint import Checkpoint
from moe_md.interfaces import lammps_gates
from moe_md.interfaces.ase import _evaluator, _pad
from moe_md.interfaces.ase import _roomy as roomy
from moe_md.neighborhood import image_pairs, rows_from_images
from moe_md.regions.protocol import Region
from moe_md.settings import check_positive


def halo(checkpoint: Checkpoint, region: Region) -> float:
    """Å, how far ghosts must reach, without the skin of LAMMPS's lists.

    Raises:
        ValueError: a region that LAMMPS cannot hold.

    >>> import moe_md as mm
    >>> expert = mm.experts.lennard_jones(("Pt",), 5.0)
    >>> halo(mm.Checkpoint((expert, expert), ({}, {}), {}, {}), mm.regions.around([0], 4.0, 2.0))
    12.0
    """
    sight, gate = max(e.cutoff * e.num_hops for e in checkpoint.experts), lammps_gates.reach(region)
    return max(2 * sight, sight + gate, 2 * gate)


def attach(lmp, checkpoint, region, elements: Sequence[str], *, fix_id: str = "moe", skin: float = 1.0, dtype: str = "float64", chunk_size: int = 64):
    """Let a mixture drive the atoms of LAMMPS.

    Sets LAMMPS's `neighbor` and `comm_modify cutoff`, and a `fix external`
    whose energy and virial LAMMPS counts in.

    Args:
        lmp: a `lammps.lammps` of units `metal`, with its box and atoms, whose
            ids are 1 to the number of atoms; atom `id` is atom `id - 1` of the region.
        checkpoint: a `Checkpoint`, or what `mm.load` takes.
        region: of `mm.regions`, no `custom` and no `hard`.
        elements: the chemical symbol of each LAMMPS type.
        fix_id: name of the fix.
        skin: Å, of LAMMPS's lists.
        dtype: "float64" (jax's own setting is left as it is) or "float32".
        chunk_size: rows computed at a time.

    Returns:
        A `Coupling`. What goes wrong during a run ends the program on all
        ranks, after a traceback: LAMMPS would go on with stale forces.

    Raises:
        ValueError: an argument does not fit.
    """
    coupling = Coupling(checkpoint, region, elements, dtype=dtype, chunk_size=chunk_size)
    check_positive("skin", skin)
    if lmp.extract_global("units") != "metal":
        raise ValueError(f"lmp must have units metal, got {lmp.extract_global('units')}.")
    if lmp.extract_setting("ntypes") != len(coupling.species_of_type):
        raise ValueError(f"elements must name each of the {lmp.extract_setting('ntypes')} types of lmp, got {list(elements)}.")
    n_atoms = lmp.get_natoms()
    tags = np.array(lmp.numpy.extract_atom("id", nelem=lmp.extract_setting("nlocal")), int)
    comm = lmp.get_mpi_comm()
    tags = np.sort(np.concatenate(comm.allgather(tags)))
    if not np.array_equal(tags, np.arange(1, n_atoms + 1)):
        raise ValueError(f"lmp must number its atoms from 1 to {n_atoms}, got ids from {tags.min(initial=0)} to {tags.max(initial=0)}.")
    lammps_gates.check_atoms(region, n_atoms)
    lmp.command(f"neighbor {skin} bin")
    lmp.command("neigh_modify every 1 delay 0 check yes")
    lmp.command(f"comm_modify mode single cutoff {coupling.halo + skin + 1e-6}")
    lmp.command(f"fix {fix_id} all external pf/callback 1 1")
    lmp.command(f"fix_modify {fix_id} energy yes virial yes")
    last = [None]

    def callback(_, step, n_local, tag, x, f):
        problem = None
        try:
            held = n_local + lmp.extract_setting("nghost")
            position, types, ids = (np.array(lmp.numpy.extract_atom(name, nelem=held)) for name in ("x", "type", "id"))
            energies, forces, virial = coupling.compute(position, types, ids, n_local)
            begins, last[0] = last[0] != step - 1, step
        except Exception:
            problem = traceback.format_exc()
        _abort_if_any(comm, problem)
        try:
            if begins:
                _check_ghosts(lmp, comm, position, ids, n_local, coupling.halo + skin)
        except Exception:
            problem = traceback.format_exc()
        _abort_if_any(comm, problem)
        total = comm.allreduce(np.append(_voigt(virial), energies.sum()))
        f[:] = forces
        lmp.fix_external_set_energy_global(fix_id, total[6])
        lmp.fix_external_set_virial_global(fix_id, list(-total[:6]))
        if n_local:
            lmp.fix_external_set_energy_peratom(fix_id, energies)

    lmp.set_fix_external_callback(fix_id, callback, lmp)
    return coupling


class Coupling:
    """What a rank computes of the atoms that it holds; arguments as of `attach`."""

    def __init__(self, checkpoint, region: Region, elements: Sequence[str], *, dtype: str = "float64", chunk_size: int = 64):
        if dtype not in ("float32", "float64"):
            raise ValueError(f"dtype must be 'float32' or 'float64', got {dtype!r}.")
        if not isinstance(checkpoint, Checkpoint):
            checkpoint = checkpoints.load(checkpoint)
        known = checkpoint.experts[0].species
        if not elements or isinstance(elements, str) or not set(elements) <= set(known):
            raise ValueError(f"elements must be chemical symbols among the species {known} that the checkpoint knows, got {elements!r}.")
        self.halo = halo(checkpoint, region)
        self.checkpoint = checkpoint
        self.region = region
        self.species_of_type = np.array([known.index(e) for e in elements], np.int32)
        self._dtype = np.dtype(dtype)
        self._evaluate = [_evaluator(e, chunk_size) for e in checkpoint.experts]
        self._gate_cutoff = lammps_gates.reach(region)

    def compute(self, position: np.ndarray, types: np.ndarray, ids: np.ndarray, n_local: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Energies and forces of owned atoms, and their part of the virial.

        Args:
            position: `[n_held, 3]` Å, of owned atoms, then of ghosts.
            types: `[n_held]` int, LAMMPS's, from 1.
            ids: `[n_held]` int, LAMMPS's, from 1.
            n_local: number of owned atoms.

        Returns:
            energies `[n_local]` eV, forces `[n_local, 3]` eV/Å, dE/d strain `[3, 3]` eV.

        Raises:
            ValueError: positions are not finite, or the region gives no weights.
        """
        n_held, n_experts = len(position), len(self.checkpoint.experts)
        if n_local == 0:
            return np.zeros(0), np.zeros((0, 3)), np.zeros((3, 3))
        if not np.isfinite(position).all():
            raise ValueError("position must be finite, got NaN or infinity.")
        species = self.species_of_type[types - 1]
        with self._precision():
            held = lammps_gates.hold(self.region, position, ids - 1, species, self._dtype)
            weight = np.asarray(lammps_gates.weights(held, cutoff=self._gate_cutoff), float)[:n_held]
        if weight.shape[1] != n_experts or not np.isfinite(weight[:n_local]).all():
            raise ValueError(f"region must give each atom finite weights on {n_experts} experts, got shape {weight.shape}.")
        away = np.zeros(n_held)
        away[n_local:] = cKDTree(position[:n_local]).query(position[n_local:])[0]
        shared = ((weight > 0) & (weight < 1)).any(axis=1) & (away <= self._gate_cutoff) & self.region.moves
        by_expert, forces, virial = np.zeros((n_held, n_experts)), np.zeros((n_local, 3)), np.zeros((3, 3))
        for e, expert in enumerate(self.checkpoint.experts):
            wanted = (weight[:, e] > 0) & ((away <= expert.cutoff * expert.num_hops) | shared)
            owned = np.flatnonzero(wanted)
            if len(owned) == 0:
                continue
            centers = owned if expert.num_hops == 1 else np.concatenate([owned, np.flatnonzero(~wanted)])
            rows = rows_from_images(
                position, species, np.zeros((3, 3)), np.zeros(3, bool), expert.cutoff, centers=centers, dtype=self._dtype
            )
            rows, padded_centers = _pad(rows, centers, n_held)
            weights = np.zeros(len(padded_centers), self._dtype)
            weights[: len(owned)] = weight[owned, e]
            with self._precision():
                out = self._evaluate[e](self.checkpoint.params[e], rows, padded_centers, weights, roomy(n_held))
                own, force, strained = (np.asarray(x, float) for x in out)
            by_expert[owned, e] = own[: len(owned)]
            forces += force[:n_local]
            virial += strained[: len(centers)][centers < n_local].sum(axis=0)
        if self.region.moves:
            energies = np.zeros((len(held.position), n_experts), self._dtype)
            energies[:n_held][shared] = by_expert[shared]
            with self._precision():
                force, strained = lammps_gates.pull(held, energies, np.arange(len(held.position)) < n_local, cutoff=self._gate_cutoff)
            forces += np.asarray(force, float)[:n_local]
            virial += np.asarray(strained, float)
        return np.sum(weight * by_expert, axis=1)[:n_local], forces, virial

    def _precision(self):
        return jax.enable_x64(True) if self._dtype == np.float64 else contextlib.nullcontext()


def _voigt(virial: np.ndarray) -> np.ndarray:
    """LAMMPS's order: xx, yy, zz, xy, xz, yz."""
    return virial[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]]


def _check_ghosts(lmp, comm, position: np.ndarray, ids: np.ndarray, n_local: int, reach: float) -> None:
    """Every owned atom sees all images of all atoms within a distance, as counted in the whole cell."""
    low, high, xy, yz, xz, periodic, _ = lmp.extract_box()
    x, y, z = np.subtract(high, low)
    cell = np.array([[x, 0, 0], [xy, y, 0], [xz, yz, z]])
    everyone = np.concatenate(comm.allgather(position[:n_local]))
    order = np.concatenate(comm.allgather(ids[:n_local]))
    center, _, _ = image_pairs(everyone, cell, np.asarray(periodic, bool), reach - 1e-6)
    wanted = np.zeros(len(order) + 1, int)
    wanted[order] = np.bincount(center, minlength=len(order))
    center, _, _ = image_pairs(position, np.zeros((3, 3)), np.zeros(3, bool), reach - 1e-6)
    missing = wanted[ids[:n_local]] - np.bincount(center, minlength=len(position))[:n_local]
    if missing.max(initial=0) > 0:
        raise ValueError(
            f"comm_modify cutoff must be at least {reach:.3f} Å, halo and skin, as `attach` sets it: atom {ids[np.argmax(missing)]} misses "
            f"{missing.max()} ghosts within that distance, and forces would be wrong without a word."
        )


def _abort_if_any(comm, problem: str | None) -> None:
    if any(comm.allgather(problem is not None)):
        if problem:
            print(problem, file=sys.stderr, flush=True)
        comm.Barrier()
        comm.Abort(1)
        os._exit(1)

