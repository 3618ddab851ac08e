"""The atoms of LAMMPS: whether they are those that a region was given for, and their virials.

Regions know atoms by number: atom `id` of LAMMPS is atom `id - 1`. `delete_atoms` and
`reset_atoms` give ids to other atoms. Each atom therefore carries the id that it had
at `attach`, in a custom property, and both are compared as each run begins.
"""

from collections.abc import Sequence
from ctypes import POINTER, c_double

import numpy as np
from ase.data import atomic_masses, atomic_numbers, chemical_symbols
from jaxtyping import Float, Int

from moe_md.interfaces.lammps_ghosts import copy_of_atoms

ID_AT_ATTACH = "i_moe_id"  # custom property of LAMMPS's atoms
IDS_FIX = "moe_ids_"  # the start of the id of the fix that holds it; the rest is the fix of the mixture
MASS_TOLERANCE = 0.5  # amu, between the mass of a type and that of its element, or of another one


def checked_n_atoms(lmp, elements: Sequence[str]) -> int:
    """The number of atoms of a LAMMPS that fits `attach`; `ValueError` otherwise."""
    if lmp.extract_global("units") != "metal":
        raise ValueError(f"lmp must have units metal, got {lmp.extract_global('units')}.")
    if not lmp.extract_setting("box_exist"):
        raise ValueError("lmp must have its box and its atoms, got neither. Create them before `attach`.")
    if lmp.extract_setting("ntypes") != len(elements):
        raise ValueError(
            f"elements must name each of the {lmp.extract_setting('ntypes')} types of lmp, "
            f"got {list(elements)}."
        )
    check_masses(lmp, elements)
    n_atoms, comm = int(lmp.get_natoms()), lmp.get_mpi_comm()
    if comm is None:
        raise ValueError(
            "lmp must run under mpi4py, got no communicator. Install an mpi4py built with LAMMPS's MPI."
        )
    ids = np.sort(np.concatenate(comm.allgather(copy_of_atoms(lmp, "id", lmp.extract_setting("nlocal")))))
    if not np.array_equal(ids, np.arange(1, n_atoms + 1)):
        raise ValueError(
            f"lmp must number its atoms from 1 to {n_atoms}, "
            f"got ids from {ids.min(initial=0)} to {ids.max(initial=0)}. Use LAMMPS's `reset_atoms id`."
        )
    return n_atoms


def check_masses(lmp, elements: Sequence[str]) -> None:
    """Raise `ValueError` where a type of LAMMPS has the mass of another element.

    A mass that is that of no element is accepted: an isotope, or a mass chosen for
    sampling. So is one that is not set, which LAMMPS refuses as a run begins.
    """
    masses = lmp.numpy.extract_atom("mass")
    for kind, element in enumerate(elements if masses is not None else (), start=1):
        mass, expected = float(masses[kind]), float(atomic_masses[atomic_numbers[element]])
        nearest = int(np.argmin(np.abs(atomic_masses[1:] - mass))) + 1
        if abs(mass - expected) > MASS_TOLERANCE > abs(mass - atomic_masses[nearest]):
            raise ValueError(
                f"elements must fit the masses of lmp: type {kind} is {element}, {expected:.3f} amu, but has "
                f"the mass of {chemical_symbols[nearest]}, {mass:.3f}. "
                "Name elements in the order of LAMMPS's types, or set `mass`."
            )


def store_ids(lmp, fix_id: str) -> None:
    """Let each atom carry its present id. Raises `ValueError` where another mixture drives the atoms."""
    for name in [each for each in lmp.available_ids("fix") if each.startswith(IDS_FIX)]:
        other = name.removeprefix(IDS_FIX)
        if other != fix_id and lmp.has_id("fix", other):
            raise ValueError(
                f"fix_id must be {other!r}, the mixture that drives these atoms already, got {fix_id!r}: "
                f"forces would be added. Use LAMMPS's `unfix {other}` first."
            )
        lmp.command(f"unfix {name}")
    lmp.command(f"fix {IDS_FIX}{fix_id} all property/atom {ID_AT_ATTACH} ghost no")
    n_local = lmp.extract_setting("nlocal")
    if n_local:
        lmp.numpy.extract_atom(ID_AT_ATTACH, nelem=n_local)[:] = copy_of_atoms(lmp, "id", n_local)


def check_same_atoms(lmp, comm, ids: Int[np.ndarray, " local"], n_atoms: int) -> None:
    """Raise `ValueError` where atoms are not those of `attach`; every rank must call.

    Args:
        lmp: a `lammps.lammps`.
        comm: its communicator (mpi4py).
        ids: LAMMPS's, of the rank's own atoms.
        n_atoms: their number at `attach`.
    """
    stored = lmp.numpy.extract_atom(ID_AT_ATTACH, nelem=len(ids)) if len(ids) else ids
    moved = len(ids) if stored is None else int(np.sum(stored != ids))
    all_ids = np.sort(np.concatenate(comm.allgather(ids)))
    moved = comm.allreduce(moved)
    if moved or not np.array_equal(all_ids, np.arange(1, n_atoms + 1)):
        raise ValueError(
            f"lmp must keep the atoms of `attach`, {n_atoms} with ids from 1, got {len(all_ids)} atoms, "
            f"{moved} of them with a new id: atoms would change experts. "
            "Call `attach` again, with their region, after atoms were deleted, created or renumbered."
        )


def check_number(n_atoms: int, found: int, exact: bool = False) -> None:
    """Raise `ValueError` where a run has added or, with `exact`, removed atoms.

    Args:
        n_atoms: their number at `attach`.
        found: their number now (`exact`), or the largest id.
        exact: whether fewer are refused too.
    """
    if found > n_atoms or (exact and found != n_atoms):
        raise ValueError(
            f"lmp must keep its {n_atoms} atoms during a run, got {'' if exact else 'id '}{found}. "
            "Remove fixes that add or delete atoms, such as deposit, evaporate and gcmc, "
            "or change atoms between runs and call `attach` again."
        )


def set_virials(lmp, fix_id: str, virials: Float[np.ndarray, "local 6"]) -> None:
    """Give `fix external` the virial of each of the rank's own atoms, eV, in LAMMPS's order and sign.

    `lammps.fix_external_set_virial_peratom` does the same with a Python loop over atoms.
    """
    virials = np.ascontiguousarray(virials, float)
    rows = virials.ctypes.data + virials.strides[0] * np.arange(len(virials), dtype=np.uintp)
    pointers = rows.astype(np.uintp).ctypes.data_as(POINTER(POINTER(c_double)))
    lmp.lib.lammps_fix_external_set_virial_peratom(lmp.lmp, fix_id.encode(), pointers)


def voigt(virials: Float[np.ndarray, "n 3 3"]) -> Float[np.ndarray, "n 6"]:
    """LAMMPS's order: xx, yy, zz, xy, xz, yz."""
    return virials[:, [0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]]
