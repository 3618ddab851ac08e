"""Labels that ASE's atoms hold, in `info`, `arrays` or the results of a calculator, under their names."""

import re

import numpy as np
from ase import Atoms
from ase.stress import voigt_6_to_full_3x3_stress

MAX_STRESS = 6.25  # eV/Å^3, about 1,000 GPa
MAX_ASYMMETRY = 0.05  # of a stress, relative to its largest component
# Names under which a label is looked for, in any case of letters, where the caller names none. Forces of a
# calculation with smearing are the gradient of its free energy.
RECOGNISED = {
    "energy": ("free_energy", "energy", "REF_energy", "dft_energy", "total_energy"),
    "forces": ("forces", "force", "REF_forces", "REF_force", "dft_forces", "dft_force"),
    "stress": ("stress", "REF_stress", "dft_stress"),
    "virial": ("virial", "virials", "REF_virial", "REF_virials", "dft_virial"),
}
ONE_ENERGY = {"free_energy", "energy"}  # differ by smearing; the first is read
# Names that look like labels.
LOOKS_LIKE = {
    "energy": re.compile("energ|enthalp|toten|etot|e_tot", re.IGNORECASE),
    "forces": re.compile("force|grad", re.IGNORECASE),
    "stress": re.compile("stress|virial|pressure", re.IGNORECASE),
}


def spelled(stored: dict, key: str, name: str) -> str:
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


def recognised(stored: dict, label: str, name: str) -> str | None:
    """The name, of those recognised, under which a label is stored; None where there is none.

    Raises:
        ValueError: it is there under two names, with two values.
    """
    found = [key for key in RECOGNISED[label] if stored.get(spelled(stored, key, name)) is not None]
    for other in found[1:]:
        first, second = (np.asarray(stored[spelled(stored, key, name)]) for key in (found[0], other))
        same = first.shape == second.shape and first.dtype.kind in "iuf" and np.allclose(first, second)
        if not same and {found[0], other} != ONE_ENERGY:
            raise ValueError(
                f"{label} of {name} must be one label, got {found[0]} and {other} with different values: name"
                f" the one to read with {label}_key."
            )
    return found[0] if found else None


def number_label(stored: dict, key: str, name: str, *shapes: tuple[int, ...]) -> np.ndarray | None:
    """A finite float64 label in one of the shapes; None where `stored` has none of that name."""
    key = spelled(stored, key, name)
    if stored.get(key) is None:
        return None
    value = np.asarray(stored[key])
    if value.dtype.kind not in "iuf":  # booleans and text are refused
        raise ValueError(f"{key} of {name} must be numbers, got {stored[key]!r:.80}.")
    value = value.astype(float)
    if value.shape not in shapes:
        wanted = " or ".join(map(str, shapes))
        raise ValueError(f"{key} of {name} must have shape {wanted}, got {value.shape}.")
    return finite(value, key, name)


def _tensor(stored: dict, key: str, name: str) -> np.ndarray | None:
    """A symmetric `[3, 3]` label, stored as 6 (Voigt), 9 or 3 x 3 numbers; None where there is none."""
    value = number_label(stored, key, name, (6,), (9,), (3, 3))
    if value is None:
        return None
    value = voigt_6_to_full_3x3_stress(value) if value.size == 6 else value.reshape(3, 3)
    if np.abs(value - value.T).max() > MAX_ASYMMETRY * np.abs(value).max():
        raise ValueError(f"{key} of {name} must be symmetric, got {value.tolist()}.")
    return 0.5 * (value + value.T)


def stress_label(
    stored: dict, stress_key: str | None, virial_key: str | None, atoms: Atoms, name: str
) -> np.ndarray | None:
    """`[3, 3]` eV/Å^3 from a stress, or from a virial where that is asked for; None without either."""
    stress = None if stress_key is None else _tensor(stored, stress_key, name)
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


def unread_labels(stored: dict, n_atoms: int, used: set[str | None]) -> tuple[str, ...]:
    """Names of numbers that look like labels, besides those used."""
    names = {name.lower() for name in used if name} | {"energy", "free_energy"}
    shapes = {"energy": ((),), "forces": ((n_atoms, 3),), "stress": ((6,), (9,), (3, 3))}
    found = []
    for key, value in stored.items():
        if isinstance(key, str) and key.lower() not in names and np.asarray(value).dtype.kind in "iuf":
            looks = (shapes[label] for label, words in LOOKS_LIKE.items() if words.search(key))
            found += [key] if any(np.shape(value) in allowed for allowed in looks) else []
    return tuple(found)


def finite(value: np.ndarray, what: str, name: str) -> np.ndarray:
    """The value, after checking that all its numbers are finite."""
    if not np.isfinite(value).all():
        raise ValueError(f"{what} of {name} must be finite, got NaN or infinity.")
    return value
