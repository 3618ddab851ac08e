"""Selects the cases of a parametrised test that run in the short depth."""

from collections.abc import Iterable

import pytest


def short(values: Iterable, *, only: Iterable | None = None, thorough: Iterable = ()) -> list:
    """Cases for `pytest.mark.parametrize`, some of them marked `thorough`.

    Args:
        values: all cases.
        only: cases of the short depth; default all but `thorough`.
        thorough: cases to mark, if `only` is not given.

    Raises:
        ValueError: a case in `only` or `thorough` is not among `values`.
    """
    values, only, thorough = list(values), None if only is None else list(only), list(thorough)
    unknown = [value for value in (*(only or ()), *thorough) if value not in values]
    if unknown:
        raise ValueError(f"cases must be among {values}, got {unknown}.")
    marked = thorough if only is None else [value for value in values if value not in only]
    return [pytest.param(v, marks=pytest.mark.thorough) if v in marked else v for v in values]
