"""Labelled frames from extended XYZ files, through ASE.

A label that is missing in a file is None, never zero.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_stress
from jaxtyping import Bool, Float

from moe_md.data import extxyz

MAX_LENGTH = 1000.0  # Å, largest component of positions and cells
MIN_IMAGE_DISTANCE = 0.5  # Å, smallest distance between periodic images
MAX_STRESS = 6.25  # eV/Å^3, about 1,000 GPa
MAX_ASYMMETRY = 0.05  # of a stress, relative to its largest component
DEFAULT_KEYS = {
    "energy_key": None,
    "forces_key": "forces",
    "stress_key": "stress",
    "virial_key": None,
    "group_key": "origin",
    "kind_key": "kind",
}
LEVEL_KEY = "level_of_theory"
# Names that look like labels.
LOOKS_LIKE = {
    "energy": re.compile("energ|enthalp|toten|etot|e_tot", re.IGNORECASE),
    "forces": re.compile("force|grad", re.IGNORECASE),
    "stress": re.compile("stress|virial|pressure", re.IGNORECASE),
}


class Frame(NamedTuple):
    """One structure with its labels; a missing label is None."""

    positions: Float[np.ndarray, "atoms 3"]  # Å
    symbols: tuple[str, ...]  # chemical symbol of each atom
    cell: Float[np.ndarray, "3 3"]  # Å, lattice vectors as rows (ASE)
    pbc: Bool[np.ndarray, "3"]
    energy: float | None = None  # eV, of all atoms together
    forces: Float[np.ndarray, "atoms 3"] | None = None  # eV/Å
    stress: Float[np.ndarray, "3 3"] | None = None  # eV/Å^3, +(1/V) dE/dstrain (ASE)
    group: str = ""  # name of a set of correlated frames, such as one trajectory
    kind: str = ""  # name of a class of structures: bulk, slab, ...
    source: str = ""  # what messages call this frame, such as "frame 3 of frames.xyz", counted from 0
    energy_name: str = ""  # name under which the energy was found
    unread: tuple[str, ...] = ()  # names of other entries that look like labels
    level_of_theory: str = ""  # of the labels, such as "PBE, 400 eV"; empty where it is not known


def frame_from_atoms(
    atoms: Atoms,
    *,
    energy_key: str | None = None,
    forces_key: str = "forces",
    stress_key: str = "stress",
    virial_key: str | None = None,
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
        stress_key: name of the stress: 6 (Voigt), 9 or 3 x 3 numbers, eV/Å^3.
        virial_key: name of a virial, -dE/dstrain in eV, of as many numbers. Where
            a fully periodic frame has it, the stress is minus the virial divided
            by the volume. By default none is read.
        group_key, kind_key: entries of `atoms.info` that become `group` and `kind`. The
            entry `level_of_theory` is read too.
        name: name of this structure in error messages.

    Returns:
        The frame, in float64. Missing labels are None.

    Raises:
        ValueError: there are no atoms, a number is not finite, a label is no number
            or has the wrong shape, a stress is too large or asymmetric to be one, or
            contradicts the virial, the periodic vectors are not independent, or a
            length exceeds 1000 Å.

    Example:
        >>> from ase.build import molecule
        >>> frame = frame_from_atoms(molecule("CO"))
        >>> sorted(frame.symbols), frame.energy
        (['C', 'O'], None)
    """
    if len(atoms) == 0:
        raise ValueError(f"{name} must have at least one atom, got none.")
    stored = {**atoms.info, **atoms.arrays, **getattr(atoms.calc, "results", {})}

    positions = _finite(atoms.positions.astype(float), "positions", name)
    cell = _finite(atoms.cell.array.astype(float), "cell", name)
    _check_lengths(positions, cell, atoms.pbc, name)
    if energy_key is None:
        found = _spelled(stored, "free_energy", name)
        energy_key = "energy" if stored.get(found) is None else found
    energy = _label(stored, energy_key, name, ())
    stress = _stress(stored, stress_key, virial_key, atoms, name)
    return Frame(
        positions=positions,
        symbols=tuple(atoms.get_chemical_symbols()),
        cell=cell,
        pbc=atoms.pbc.copy(),
        energy=None if energy is None else float(energy),
        forces=_label(stored, forces_key, name, (len(atoms), 3)),
        stress=stress,
        group=str(atoms.info.get(_spelled(atoms.info, group_key, name), "")),
        kind=str(atoms.info.get(_spelled(atoms.info, kind_key, name), "")),
        energy_name="" if energy is None else _spelled(stored, energy_key, name),
        unread=_unread(stored, len(atoms), {energy_key, forces_key, stress_key, virial_key}),
        level_of_theory=_one_line(atoms.info.get(_spelled(atoms.info, LEVEL_KEY, name), "")),
    )


def _spelled(stored: dict, key: str, name: str) -> str:
    """A key as `stored` spells it: exactly, else in another case of letters.

    Raises:
        ValueError: two entries differ from the key, and from each other, in case only.
    """
    if stored.get(key) is not None:
        return key
    others = [k for k in stored if isinstance(k, str) and k.lower() == key.lower() and stored[k] is not None]
    if len(others) > 1:
        raise ValueError(f"{key} of {name} must be one entry, got {' and '.join(others)}: name one of them.")
    return others[0] if others else key


def _label(stored: dict, key: str, name: str, *shapes: tuple[int, ...]) -> np.ndarray | None:
    """A finite float64 label in one of the shapes; None where `stored` has none of that name."""
    key = _spelled(stored, key, name)
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


def _tensor(stored: dict, key: str, name: str) -> np.ndarray | None:
    """A symmetric `[3, 3]` label, stored as 6 (Voigt), 9 or 3 x 3 numbers; None where there is none."""
    value = _label(stored, key, name, (6,), (9,), (3, 3))
    if value is None:
        return None
    value = voigt_6_to_full_3x3_stress(value) if value.size == 6 else value.reshape(3, 3)
    if np.abs(value - value.T).max() > MAX_ASYMMETRY * np.abs(value).max():
        raise ValueError(f"{key} of {name} must be symmetric, got {value.tolist()}.")
    return 0.5 * (value + value.T)


def _stress(
    stored: dict, stress_key: str, virial_key: str | None, atoms: Atoms, name: str
) -> np.ndarray | None:
    """`[3, 3]` eV/Å^3 from a stress, or from a virial where that is asked for; None without either."""
    stress = _tensor(stored, stress_key, name)
    virial = None if virial_key is None else _tensor(stored, virial_key, name)
    if not atoms.pbc.all():
        return stress  # of no use, as there is no volume
    volume = abs(np.linalg.det(atoms.cell.array))
    if virial is not None:
        converted = -virial / volume
        if stress is not None and np.abs(stress - converted).max() > 0.01 * np.abs(stress).max():
            raise ValueError(
                f"{stress_key} and {virial_key} of {name} must agree, stress = -virial / volume, got"
                f" {stress.tolist()} and {converted.tolist()} eV/Å^3: read only one of them."
            )
        stress, stress_key = converted, virial_key or ""
    if stress is not None and np.abs(stress).max() > MAX_STRESS:
        raise ValueError(
            f"{stress_key} of {name} must be a stress in eV/Å^3, at most {MAX_STRESS} (1,000 GPa), got"
            f" {np.abs(stress).max():.3g}: for a virial in eV set virial_key, and convert GPa or kbar."
        )
    return stress


def _unread(stored: dict, n_atoms: int, used: set[str | None]) -> tuple[str, ...]:
    """Names of numbers that look like labels, besides those used."""
    names = {name.lower() for name in used if name} | {"energy", "free_energy"}
    shapes = {"energy": ((),), "forces": ((n_atoms, 3),), "stress": ((6,), (9,), (3, 3))}
    found = []
    for key, value in stored.items():
        if isinstance(key, str) and key.lower() not in names and np.asarray(value).dtype.kind in "iuf":
            looks = (shapes[label] for label, words in LOOKS_LIKE.items() if words.search(key))
            found += [key] if any(np.shape(value) in allowed for allowed in looks) else []
    return tuple(found)


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
    info = {"origin": frame.group, "kind": frame.kind, LEVEL_KEY: frame.level_of_theory}
    atoms.info = {k: v for k, v in info.items() if v}
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
    virial_key: str | None = None,
    group_key: str = "origin",
    kind_key: str = "kind",
    level_of_theory: str | None = None,
) -> tuple[Frame, ...]:
    """All frames of an extended XYZ file, which may be compressed (gz, bz2, xz).

    Args:
        path: the file.
        energy_key, forces_key, stress_key, virial_key, group_key, kind_key: as in
            `frame_from_atoms`, in any case of letters where no entry has this one. A
            frame without a group is its own group, `file name:index`.
        level_of_theory: of the labels of frames without an entry of this name, such as
            "PBE, 400 eV"; default unknown.

    Returns:
        The frames, in the order of the file.

    Raises:
        ValueError: as `frame_from_atoms` and `extxyz.read_images`; no frame has a
            label, group or kind under a name that was given; the name of the stress is
            that of a virial; or labels are of two levels of theory. Messages count
            frames from 0.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ValueError(f"path must be the path of a file, got {path!r:.80}.")
    path = Path(path)
    keys = {
        "energy_key": energy_key,
        "forces_key": forces_key,
        "stress_key": stress_key,
        "virial_key": virial_key,
        "group_key": group_key,
        "kind_key": kind_key,
    }
    for name, key in keys.items():
        if not isinstance(key, str) and not (key is None and DEFAULT_KEYS[name] is None):
            raise ValueError(f"{name} must be the name of an entry of {path}, got {key!r:.80}.")
    if level_of_theory is not None and not isinstance(level_of_theory, str):
        raise ValueError(f"level_of_theory must be a text, got {level_of_theory!r:.80}.")
    images = extxyz.read_images(path)
    _check_names(path, images, keys)
    frames = []
    for index, atoms in enumerate(images):
        frame = frame_from_atoms(
            atoms,
            energy_key=energy_key,
            forces_key=forces_key,
            stress_key=stress_key,
            virial_key=virial_key,
            group_key=group_key,
            kind_key=kind_key,
            name=f"frame {index} of {path}",
        )
        frames.append(
            frame._replace(
                group=frame.group or f"{path.name}:{index}",
                source=f"frame {index} of {path.name}",
                level_of_theory=frame.level_of_theory or _one_line(level_of_theory or ""),
            )
        )
    common_level(frames, "" if level_of_theory is None else _one_line(level_of_theory))
    return tuple(frames)


def common_level(frames: Iterable[Frame], expected: str = "") -> str:
    """The level of theory of labelled frames.

    Args:
        frames: the frames; those without one are ignored.
        expected: the level that all must have; empty for any.

    Returns:
        The level; empty where no frame has one.

    Raises:
        ValueError: frames have different levels, or another one than expected.
    """
    sources: dict[str, list[str]] = {expected: ["the settings"]} if expected else {}
    for index, frame in enumerate(frames):
        if frame.level_of_theory:
            sources.setdefault(frame.level_of_theory, []).append(frame.source or f"frame {index}")
    if len(sources) > 1:
        found = " and ".join(
            f"{level!r} in {names[0]}" + (f" and {len(names) - 1} more" if names[1:] else "")
            for level, names in sources.items()
        )
        raise ValueError(
            f"level_of_theory must be one for all labels, got {found}: their energies do not compare. Train"
            " on one level, then continue on the other from that checkpoint (start), or correct the text."
        )
    return next(iter(sources), "")


def _one_line(text) -> str:
    """A text with single spaces."""
    return " ".join(str(text).split())


def _check_names(path: Path, images: list[Atoms], keys: dict[str, str | None]) -> None:
    """Raise where a name that is not the default occurs in no frame."""
    present: dict[str, set[str]] = {"labels": set(), "entries": set()}
    for atoms in images:
        present["entries"] |= set(atoms.info)
        present["labels"] |= {*atoms.info, *atoms.arrays} - {"numbers", "positions"}
    for argument, key in keys.items():
        what, of = ("entries", "an entry") if argument in ("group_key", "kind_key") else ("labels", "a label")
        if key in (None, DEFAULT_KEYS[argument]):
            continue
        if key.lower() not in {str(name).lower() for name in present[what]}:
            found = ", ".join(sorted(map(str, present[what]))[:20]) or "nothing"
            raise ValueError(
                f"{argument} must name {of} of a frame of {path}, got {key!r}; there is {found}."
            )
    if "virial" in str(keys["stress_key"]).lower():
        raise ValueError(
            f"stress_key must name a stress in eV/Å^3, got {keys['stress_key']!r}: set virial_key for a"
            " virial in eV, which is divided by the volume."
        )


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
