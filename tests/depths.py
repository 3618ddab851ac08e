"""Which cases of a parametrised test run in the short depth."""

from collections.abc import Iterable

import pytest


def short(values: Iterable, *, only: Iterable | None = None, thorough: Iterable = ()) -> list:
    """Cases for `pytest.mark.parametrize`, further ones marked `thorough`.

    Args:
        values: all cases.
        only: those of the short depth; default all but `thorough`.
        thorough: those that are left out of the short depth.

    Raises:
        ValueError: a case that is named is not among `values`.
    """
    values, only, thorough = list(values), None if only is None else list(only), list(thorough)
    unknown = [value for value in (*(only or ()), *thorough) if value not in values]
    if unknown:
        raise ValueError(f"cases must be among {values}, got {unknown}.")
    left_out = thorough if only is None else [value for value in values if value not in only]
    return [pytest.param(v, marks=pytest.mark.thorough) if v in left_out else v for v in values]
