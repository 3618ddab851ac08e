"""Labelled frames from extended XYZ files, through ASE.

A label that is missing in a file is None, never zero.
"""

import gzip
import io
import os
import zlib
from pathlib import Path
from typing import Any, NamedTuple, cast

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_stress

MAX_LENGTH = 1000.0  # Å, largest component of positions and cells
MIN_IMAGE_DISTANCE = 0.5  # Å, smallest distance between periodic images
DEFAULT_KEYS = {
    "energy_key": None,
    "forces_key": "forces",
    "stress_key": "stress",
    "group_key": "origin",
    "kind_key": "kind",
}


class Frame(NamedTuple):
    """One structure with its labels; a missing label is None."""

    positions: np.ndarray  # [n_atoms, 3] Å
    symbols: tuple[str, ...]  # n_atoms chemical symbols
    cell: np.ndarray  # [3, 3] Å, lattice vectors as rows (ASE)
    pbc: np.ndarray  # [3] bool
    energy: float | None = None  # eV, of all atoms together
    forces: np.ndarray | None = None  # [n_atoms, 3] eV/Å
    stress: np.ndarray | None = None  # [3, 3] eV/Å^3, +(1/V) dE/dstrain (ASE)
    group: str = ""  # name of a set of correlated frames, such as one trajectory
    kind: str = ""  # name of a class of structures: bulk, slab, ...


def frame_from_atoms(
    atoms: Atoms,
    *,
    energy_key: str | None = None,
    forces_key: str = "forces",
    stress_key: str = "stress",
    group_key: str = "origin",
    kind_key: str = "kind",
    name: str = "atoms",
) -> Frame:
    """A frame from ASE's atoms, with labels from their calculator, `info` and `arrays`.

    Args:
        atoms: the structure; its calculator's stored results are read, and no
            calculation is run.
        energy_key: name of the energy; by default `free_energy`, of which the
            forces of a DFT calculation with smearing are the gradient, else
            `energy`.
        forces_key: name of the forces.
        stress_key: name of the stress: 6 (Voigt), 9 or 3 x 3 numbers.
        group_key, kind_key: entries of `atoms.info` that become `group` and `kind`.
        name: name of this structure in error messages.

    Returns:
        The frame, in float64. Missing labels are None.

    Raises:
        ValueError: there are no atoms, a number is not finite, a label has the
            wrong shape, the periodic vectors are not independent, or a length
            exceeds 1000 Å.

    Example:
        >>> from ase.build import molecule
        >>> frame = frame_from_atoms(molecule("CO"))
        >>> sorted(frame.symbols), frame.energy
        (['C', 'O'], None)
    """
    if len(atoms) == 0:
        raise ValueError(f"{name} must have at least one atom, got none.")
    stored = {**atoms.info, **atoms.arrays, **getattr(atoms.calc, "results", {})}

    if energy_key is None:
        energy_key = "energy" if stored.get("free_energy") is None else "free_energy"
    energy = _label(stored, energy_key, name, ())
    stress = _label(stored, stress_key, name, (6,), (9,), (3, 3))
    if stress is not None:
        stress = voigt_6_to_full_3x3_stress(stress) if stress.size == 6 else stress.reshape(3, 3)
        stress = 0.5 * (stress + stress.T)
    positions = _finite(atoms.positions.astype(float), "positions", name)
    cell = _finite(atoms.cell.array.astype(float), "cell", name)
    _check_lengths(positions, cell, atoms.pbc, name)
    return Frame(
        positions=positions,
        symbols=tuple(atoms.get_chemical_symbols()),
        cell=cell,
        pbc=atoms.pbc.copy(),
        energy=None if energy is None else float(energy),
        forces=_label(stored, forces_key, name, (len(atoms), 3)),
        stress=stress,
        group=str(atoms.info.get(group_key, "")),
        kind=str(atoms.info.get(kind_key, "")),
    )


def _label(stored: dict, key: str, name: str, *shapes: tuple[int, ...]) -> np.ndarray | None:
    """A finite float64 label in one of the shapes; None where `stored` has none of that name."""
    if stored.get(key) is None:
        return None
    value = np.asarray(stored[key])
    if value.dtype.kind not in "iuf":  # booleans and text are refused
        raise ValueError(f"{key} of {name} must be numbers, got {stored[key]!r:.80}.")
    value = value.astype(float)
    if value.shape not in shapes:
        wanted = " or ".join(map(str, shapes))
        raise ValueError(f"{key} of {name} must have shape {wanted}, got {value.shape}.")
    return _finite(value, key, name)


def frame_to_atoms(frame: Frame) -> Atoms:
    """ASE's atoms, with the frame's labels in a `SinglePointCalculator`.

    The energy is stored as both `energy` and `free_energy`, so that
    `frame_from_atoms` returns the same number; `group` is stored as `origin`.

    Args:
        frame: the structure.

    Returns:
        The atoms.
    """
    atoms = Atoms(frame.symbols, frame.positions, cell=frame.cell, pbc=frame.pbc)
    atoms.info = {k: v for k, v in {"origin": frame.group, "kind": frame.kind}.items() if v}
    labels: dict[str, Any] = {}
    if frame.energy is not None:
        labels["energy"] = labels["free_energy"] = frame.energy
    if frame.forces is not None:
        labels["forces"] = frame.forces
    if frame.stress is not None:
        labels["stress"] = full_3x3_to_voigt_6_stress(frame.stress)
    if labels:
        atoms.calc = SinglePointCalculator(atoms, **labels)
    return atoms


def read_frames(
    path: str | Path,
    *,
    energy_key: str | None = None,
    forces_key: str = "forces",
    stress_key: str = "stress",
    group_key: str = "origin",
    kind_key: str = "kind",
) -> tuple[Frame, ...]:
    """All frames of an extended XYZ file, gzipped if its name ends in `.gz`.

    Args:
        path: the file.
        energy_key, forces_key, stress_key, group_key, kind_key: as in `frame_from_atoms`.
            A frame without a group is its own group, `file name:index`.

    Returns:
        The frames, in the order of the file.

    Raises:
        ValueError: the file is missing, empty, damaged or truncated; a number
            is not finite; a label has the wrong shape; or no frame has a label,
            group or kind under a name that was given.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ValueError(f"path must be the path of a file, got {path!r:.80}.")
    path = Path(path)
    keys = {
        "energy_key": energy_key,
        "forces_key": forces_key,
        "stress_key": stress_key,
        "group_key": group_key,
        "kind_key": kind_key,
    }
    for name, key in keys.items():
        if not isinstance(key, str) and not (key is None and name == "energy_key"):
            raise ValueError(f"{name} must be the name of an entry of {path}, got {key!r:.80}.")
    text = _read_text(path)
    try:
        images = cast("list[Atoms]", ase.io.read(io.StringIO(text), index=":", format="extxyz"))
    except Exception as error:  # ASE raises many types on damaged files
        raise ValueError(f"path must be a whole extended XYZ file, got {path}: {error}") from error
    frames = []
    for index, atoms in enumerate(images):
        frame = frame_from_atoms(
            atoms,
            energy_key=energy_key,
            forces_key=forces_key,
            stress_key=stress_key,
            group_key=group_key,
            kind_key=kind_key,
            name=f"frame {index} of {path}",
        )
        frames.append(frame if frame.group else frame._replace(group=f"{path.name}:{index}"))
    _check_names(path, images, keys)
    return tuple(frames)


def _check_names(path: Path, images: list[Atoms], keys: dict[str, str | None]) -> None:
    """Raise where a name that is not the default occurs in no frame."""
    present: dict[str, set[str]] = {"labels": set(), "entries": set()}
    for atoms in images:
        results = {key for key, value in getattr(atoms.calc, "results", {}).items() if value is not None}
        present["entries"] |= set(atoms.info)
        present["labels"] |= {*atoms.info, *results, *atoms.arrays} - {"numbers", "positions"}
    for argument, key in keys.items():
        what, of = ("entries", "an entry") if argument in ("group_key", "kind_key") else ("labels", "a label")
        if key != DEFAULT_KEYS[argument] and key not in present[what]:
            found = ", ".join(sorted(map(str, present[what]))[:20]) or "nothing"
            raise ValueError(
                f"{argument} must name {of} of a frame of {path}, got {key!r}; there is {found}."
            )


def _read_text(path: Path) -> str:
    """Text of a file, checked to hold whole frames."""
    if not path.is_file():
        raise ValueError(f"path must be an existing file, got {path}.")
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            text = file.read()
    except (EOFError, OSError, UnicodeDecodeError, zlib.error) as error:
        raise ValueError(f"path must be a readable whole file, got {path}: {error}") from error
    lines = text.splitlines()
    if not any(line.strip() for line in lines):
        raise ValueError(f"path must hold at least one frame, got the empty file {path}.")
    last = _last_frame(path, lines)
    # A file truncated within its last number still parses. If all other lines of the last
    # frame have the same length, a shorter last line without a newline was truncated.
    if not text.endswith("\n"):
        widths = {len(line) for line in lines[last + 2 : -1]}
        if len(widths) == 1 and len(lines[-1]) < min(widths):
            raise ValueError(f"path must be a whole file, got {path}: it ends inside the line {lines[-1]!r}.")
    return text


def _last_frame(path: Path, lines: list[str]) -> int:
    """Index of the first line of the last frame, after checking that every frame has all its lines.

    ASE accepts an incomplete last frame and ignores frames after an empty line.
    """
    last = start = 0
    while start < len(lines) and lines[start].strip():
        count = lines[start].strip()
        if not (count.isascii() and count.isdigit() and len(count) < 12 and int(count) > 0):
            problem = f"line {start + 1} must be a number of atoms, at least 1, got {count!r:.80}"
            raise ValueError(f"path must be a whole extended XYZ file, got {path}: {problem}.")
        last, start = start, start + 2 + int(count)
        if start > len(lines):
            problem = f"it ends before the {count} atoms that line {last + 1} announces"
            raise ValueError(f"path must be a whole extended XYZ file, got {path}: {problem}.")
        while start < len(lines) and lines[start].startswith("VEC"):  # lattice vectors may follow
            start += 1
    if any(line.strip() for line in lines[start:]):
        raise ValueError(f"path must hold frames without a gap, got {path}: line {start + 1} is empty.")
    return last


def _check_lengths(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, name: str) -> None:
    """Raise on lengths and cells for which a search for neighbours would not end."""
    for what, value in (("positions", positions), ("cell", cell)):
        if np.abs(value).max() > MAX_LENGTH:
            raise ValueError(
                f"{what} of {name} must lie within {MAX_LENGTH} Å, got {np.abs(value).max():.3g} Å."
            )
    image_distance = np.linalg.svd(cell[pbc], compute_uv=False).min() if pbc.any() else np.inf
    if image_distance < MIN_IMAGE_DISTANCE:
        raise ValueError(
            f"cell of {name} must have independent vectors along periodic directions, images at least "
            f"{MIN_IMAGE_DISTANCE} Å apart, got {cell.tolist()} with pbc {pbc.tolist()}."
        )


def _finite(value: np.ndarray, what: str, name: str) -> np.ndarray:
    """The value, after checking that all its numbers are finite."""
    if not np.isfinite(value).all():
        raise ValueError(f"{what} of {name} must be finite, got NaN or infinity.")
    return value
