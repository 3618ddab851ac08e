"""Labelled frames from files that ASE reads.

A label that is missing in a file is None, never zero. It is found under one of the names that
programs give it (`RECOGNISED`), or under the name that the caller gives.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress
from jaxtyping import Bool, Float

from moe_md.data.sources import read_sources
from moe_md.data.stored_labels import finite, number_label, recognised, spelled, stress_label, unread_labels

MAX_LENGTH = 1000.0  # Å, largest component of positions and cells
MIN_IMAGE_DISTANCE = 0.5  # Å, smallest distance between periodic images
DEFAULT_KEYS = {
    "energy_key": None,
    "forces_key": None,
    "stress_key": None,
    "virial_key": None,
    "group_key": "origin",
    "kind_key": "kind",
}
LEVEL_KEY = "level_of_theory"


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
    forces_key: str | None = None,
    stress_key: str | None = None,
    virial_key: str | None = None,
    group_key: str = "origin",
    kind_key: str = "kind",
    name: str = "atoms",
) -> Frame:
    """A frame from ASE's atoms, with labels from their calculator, `info` and `arrays`.

    Args:
        atoms: the structure; its calculator's stored results are read, and no
            calculation is run.
        energy_key: name of the energy; by default the first that is there of `RECOGNISED`.
        forces_key: name of the forces; default likewise.
        stress_key: name of the stress: 6 (Voigt), 9 or 3 x 3 numbers, eV/Å^3; default likewise.
        virial_key: name of a virial, -dE/dstrain in eV, of as many numbers; default likewise,
            where no `stress_key` is given. Where a fully periodic frame has it, the
            stress is minus the virial divided by the volume.
        group_key, kind_key: entries of `atoms.info` that become `group` and `kind`. The
            entry `level_of_theory` is read too.
        name: name of this structure in error messages.

    Returns:
        The frame, in float64. Missing labels are None.

    Raises:
        ValueError: there are no atoms, a number is not finite, a label is no number
            or has the wrong shape, or stands under two recognised names with two values, a
            stress is too large or asymmetric to be one, or contradicts the virial, the
            periodic vectors are not independent, or a length exceeds 1000 Å.

    Example:
        >>> from ase.build import molecule
        >>> frame = frame_from_atoms(molecule("CO"))
        >>> sorted(frame.symbols), frame.energy
        (['C', 'O'], None)
    """
    if len(atoms) == 0:
        raise ValueError(f"{name} must have at least one atom, got none.")
    stored = {**atoms.info, **atoms.arrays, **getattr(atoms.calc, "results", {})}

    positions = finite(atoms.positions.astype(float), "positions", name)
    cell = finite(atoms.cell.array.astype(float), "cell", name)
    _check_lengths(positions, cell, atoms.pbc, name)
    energy_key = recognised(stored, "energy", name) if energy_key is None else energy_key
    forces_key = recognised(stored, "forces", name) if forces_key is None else forces_key
    if virial_key is None and stress_key is None:
        virial_key = recognised(stored, "virial", name)
    stress_key = recognised(stored, "stress", name) if stress_key is None else stress_key
    energy = None if energy_key is None else number_label(stored, energy_key, name, ())
    stress = stress_label(stored, stress_key, virial_key, atoms, name)
    return Frame(
        positions=positions,
        symbols=tuple(atoms.get_chemical_symbols()),
        cell=cell,
        pbc=atoms.pbc.copy(),
        energy=None if energy is None else float(energy),
        forces=None if forces_key is None else number_label(stored, forces_key, name, (len(atoms), 3)),
        stress=stress,
        group=str(atoms.info.get(spelled(atoms.info, group_key, name), "")),
        kind=str(atoms.info.get(spelled(atoms.info, kind_key, name), "")),
        energy_name="" if energy is None or energy_key is None else spelled(stored, energy_key, name),
        unread=unread_labels(stored, len(atoms), {energy_key, forces_key, stress_key, virial_key}),
        level_of_theory=_one_line(atoms.info.get(spelled(atoms.info, LEVEL_KEY, name), "")),
    )


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
    forces_key: str | None = None,
    stress_key: str | None = None,
    virial_key: str | None = None,
    group_key: str = "origin",
    kind_key: str = "kind",
    level_of_theory: str | None = None,
) -> tuple[Frame, ...]:
    """All frames of files that ASE reads: extended XYZ, OUTCAR, vasprun.xml, traj, db, JSON and others.

    Args:
        path: a file, a folder or a pattern, or several with commas; see `sources.read_sources`.
        energy_key, forces_key, stress_key, virial_key, group_key, kind_key: as in
            `frame_from_atoms`, in any case of letters where no entry has this one. A
            frame without a group is its own group, `file name:index`; frames of a format that
            holds one trajectory form a group with the file's name.
        level_of_theory: of the labels of frames without an entry of this name, such as
            "PBE, 400 eV"; default unknown.

    Returns:
        The frames, in the order of the file.

    Raises:
        ValueError: as `frame_from_atoms` and `sources.read_sources`; no frame has a
            label, group or kind under a name that was given; the name of the stress is
            that of a virial; or labels are of two levels of theory. Messages count the
            frames of a file from 0.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ValueError(f"path must be the path of a file, got {path!r:.80}.")
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
    sources = read_sources(path)
    _check_names(str(path), [atoms for source in sources for atoms in source.images], keys)
    frames = []
    for source in sources:
        for index, atoms in enumerate(source.images):
            frame = frame_from_atoms(
                atoms,
                energy_key=energy_key,
                forces_key=forces_key,
                stress_key=stress_key,
                virial_key=virial_key,
                group_key=group_key,
                kind_key=kind_key,
                name=f"frame {index} of {source.path}",
            )
            group = source.name if source.is_trajectory else f"{source.name}:{index}"
            frames.append(
                frame._replace(
                    group=frame.group or group,
                    source=f"frame {index} of {source.name}",
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


def _check_names(path: str, images: list[Atoms], keys: dict[str, str | None]) -> None:
    """Raise where a name that is not the default occurs in no frame."""
    present: dict[str, set[str]] = {"labels": set(), "entries": set()}
    for atoms in images:
        present["entries"] |= set(atoms.info)
        results = getattr(atoms.calc, "results", {})
        present["labels"] |= {*atoms.info, *atoms.arrays, *results} - {"numbers", "positions"}
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
