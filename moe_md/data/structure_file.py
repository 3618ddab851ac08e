"""The structure of a run, from any file that ASE reads."""

import warnings
from io import StringIO
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.io.formats import filetype, ioformats
from jaxtyping import Float, Shaped

from moe_md.data.extxyz import read_images, text_of
from moe_md.neighbors.rows import image_pairs

MIN_DISTANCE = 0.1  # Å, atoms closer than this are one atom given twice
FULL_OCCUPANCY = 1e-3  # largest deviation from one


def read_structure(path: str | Path) -> Atoms:
    """The last structure of a file, with velocities, constraints, tags and further columns where it has them.

    Args:
        path: any file that ASE reads; extended XYZ is read as by `read_images`.

    Returns:
        The atoms, in Å, without a calculator.

    Raises:
        ValueError: the file does not exist or cannot be read, holds no atoms, sites that
            are occupied in part, positions that are not finite, a cell that is no cell, or
            one atom twice.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"structure must be an existing file, got {path}.")
    try:
        form = filetype(str(path))
        atoms = None if form == "extxyz" else _read(path, form)
    except Exception as error:  # ASE raises many types
        raise ValueError(f"structure must be a file that ASE reads, got {path}: {error!s:.200}.") from None
    atoms = read_images(path)[-1] if atoms is None else atoms
    assert isinstance(atoms, Atoms)  # the index selects one frame
    atoms.calc = None
    _check_occupancy(atoms, path)
    _check_geometry(atoms, path)
    _warn_of_velocities(atoms, path)
    return atoms


def _read(path: Path, form: str):
    """The last structure of a file in a format of ASE, which reads text in the locale's encoding."""
    if not ioformats[form].isbinary and ioformats[form].acceptsfd:
        text = text_of(path)
        if not text.isascii():
            return ase.io.read(StringIO(text), index=-1, format=form)
    return ase.io.read(path, index=-1)


def _check_occupancy(atoms: Atoms, path: Path) -> None:
    """Raise on sites that are occupied in part: ASE fills all of them."""
    sites = atoms.info.get("occupancy", {})
    shares = [*sites.values()] if isinstance(sites, dict) else []  # of a CIF: {symbol: share} for each site
    shares += [
        {atoms.symbols[k]: x} for k, x in enumerate(atoms.arrays.get("occupancy", ())) if x > 0
    ]  # of a PDB
    partial = [site for site in shares if len(site) > 1 or not _is_full(*site.values())]
    if partial:
        raise ValueError(
            f"structure must have sites that are full, got {len(partial)} occupied in part in {path}, such as"
            f" {partial[0]}: choose which atoms are there, for example in a supercell."
        )


def _is_full(share) -> bool:
    """Whether a site is occupied by one atom; the default of a CIF, ".", is one."""
    return share == "." or (isinstance(share, (int, float)) and abs(share - 1) <= FULL_OCCUPANCY)


def _check_geometry(atoms: Atoms, path: Path) -> None:
    if len(atoms) == 0:
        raise ValueError(f"structure must have at least one atom, got none in {path}.")
    if (atoms.numbers == 0).any():
        raise ValueError(f"structure must hold chemical elements, got X (no element) in {path}.")
    if not np.isfinite(atoms.cell.array).all():
        raise ValueError(f"structure must have a finite cell, got {atoms.cell.array.tolist()} in {path}.")
    check_distinct(atoms.positions, atoms.cell.array, atoms.pbc, f"structure {path}")


def check_distinct(
    positions: Float[np.ndarray, "atoms 3"],
    cell: Float[np.ndarray, "3 3"],
    pbc: Shaped[np.ndarray, "3"],
    where: str,
) -> None:
    """Raise `ValueError` where one atom is given twice, or the cell is no cell.

    Args:
        positions: Å.
        cell: Å, rows.
        pbc: periodic directions.
        where: name of the structure, for messages.
    """
    try:
        i, j, displacement = image_pairs(positions, cell, pbc, MIN_DISTANCE)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if len(i):
        distance = np.linalg.norm(displacement[0])
        raise ValueError(
            f"{where} must hold each atom once, got atoms {i[0]} and {j[0]} {distance:.2g} Å apart: remove"
            " one, or correct the cell."
        )


def _warn_of_velocities(atoms: Atoms, path: Path) -> None:
    """Warn of velocities under another name than ASE's."""
    names = [name for name in atoms.arrays if name.lower().startswith("vel")]
    if names and "momenta" not in atoms.arrays:
        warnings.warn(
            f"column {names[0]} of {path} is not read: velocities are ASE's column momenta. New ones are"
            " drawn.",
            stacklevel=3,
        )
