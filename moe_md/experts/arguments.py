"""Checks of arguments that the builders of experts share."""

from collections.abc import Sequence
from typing import overload

import numpy as np

from moe_md.checks import check_value

MAX_ORDER = 8  # highest order of spherical harmonics
MAX_DEPTH = 32  # layers of a network


def check_species(species: Sequence[str], cutoff: float, allowed_species: Sequence[str] | None) -> None:
    """Raise `ValueError` where species or cutoff of an expert are out of range."""
    if not _are_names(species) or len(species) == 0 or len(set(species)) != len(species):
        raise ValueError(f"species must be a tuple of distinct chemical symbols, got {species!r:.80}.")
    check_value("cutoff", cutoff, float)
    if not cutoff > 0:
        raise ValueError(f"cutoff must be positive (Å), got {cutoff}.")
    if allowed_species is not None and (
        not _are_names(allowed_species)
        or len(allowed_species) == 0
        or not set(allowed_species) <= set(species)
    ):
        raise ValueError(
            f"allowed_species must be a non-empty subset of species {tuple(species)}, "
            f"got {allowed_species!r:.80}."
        )


def check_integer(name: str, value, least: int, most: int | None = None) -> None:
    """Raise `ValueError` unless a value is an integer between `least` and `most`."""
    check_value(name, value, int)
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}.")
    if most is not None and value > most:
        raise ValueError(f"{name} must be at most {most}, got {value}.")


def check_power(value) -> None:
    """Raise `ValueError` unless the power of an envelope is between 2 and 100."""
    check_value("polynomial_cutoff_p", value, float)
    if not 2 <= value <= 100:
        raise ValueError(f"polynomial_cutoff_p must lie between 2 and 100, got {value}.")


def check_widths(name: str, widths) -> None:
    """Raise `ValueError` unless these are widths of hidden layers."""
    if not isinstance(widths, (tuple, list)) or len(widths) > MAX_DEPTH:
        raise ValueError(f"{name} must be a tuple of at most {MAX_DEPTH} widths, got {widths!r:.80}.")
    for width in widths:
        check_integer(name, width, 1)


@overload
def checked_avg_num_neighbors(value: float, n_species: int) -> float: ...


@overload
def checked_avg_num_neighbors(value, n_species: int) -> float | tuple[float, ...]: ...


def checked_avg_num_neighbors(value, n_species: int) -> float | tuple[float, ...]:
    """One positive number, or one per species; `ValueError` otherwise."""
    numbers = _numbers(value)
    if numbers.shape not in ((), (n_species,)) or not np.all((numbers > 0) & (numbers < np.inf)):
        raise ValueError(
            f"avg_num_neighbors must be positive, one number or one per species, got {value!r:.80}."
        )
    return numbers.item() if numbers.ndim == 0 else tuple(numbers.tolist())


def checked_pair_cutoffs(value, n_species: int, cutoff: float) -> tuple[tuple[float, ...], ...]:
    """Cutoffs in Å by species of centre and neighbour, at most `cutoff`; `ValueError` otherwise."""
    table = _numbers(value)
    if table.shape != (n_species, n_species) or not np.all((table > 0) & (table <= cutoff)):
        raise ValueError(
            f"pair_cutoffs must be {n_species} rows of {n_species} numbers above 0 "
            f"and up to cutoff = {cutoff} Å, got {value!r:.80}."
        )
    return tuple(map(tuple, table.tolist()))


def _numbers(value) -> np.ndarray:
    """A value as an array of numbers; NaN where it is something else."""
    try:
        array = np.asarray(value)
    except ValueError:  # rows of unequal length
        return np.asarray(np.nan)
    return array.astype(float) if array.dtype.kind in "iuf" else np.asarray(np.nan)


def _are_names(value) -> bool:
    return isinstance(value, (tuple, list)) and all(isinstance(name, str) for name in value)
