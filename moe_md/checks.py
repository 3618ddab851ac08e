"""Settings and arguments against their types."""

import math
import sys
import types
import typing
from dataclasses import fields, is_dataclass
from numbers import Integral, Real

LARGEST_WHOLE = 2**31 - 1


def check_fields(settings) -> None:
    """Every field is what its annotation says.

    Args:
        settings: a dataclass of `int`, `float`, `bool`, `str`, other
            dataclasses, or any of these or None. A whole number serves as a
            float; a boolean is no number; numbers are finite.

    Raises:
        ValueError: a field is of another type, not finite, or a whole number
            beyond 2^31.

    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Cup:
    ...     volume: float = 0.2
    ...     __post_init__ = check_fields
    >>> Cup("full")
    Traceback (most recent call last):
    ValueError: volume must be of type float, got 'full'.
    """
    hints = typing.get_type_hints(type(settings))
    for field in fields(settings):
        kind, value = kind_of(hints[field.name]), getattr(settings, field.name)
        if value is not None or kind is hints[field.name]:
            check_value(field.name, value, kind)


def check_value(name: str, value, kind: type, *, finite: bool = True) -> None:
    """One value, as `check_fields` checks it.

    Args:
        name: of the argument, for messages.
        value: what was given.
        kind: `int`, `float`, or any type.
        finite: whether a float must be; it is never NaN.

    Raises:
        ValueError: of another type, or out of range.
    """
    if not _is_a(value, kind):
        wanted = "a table" if is_dataclass(kind) else f"of type {kind.__name__}"
        raise ValueError(f"{name} must be {wanted}, got {value!r:.80}.")
    if kind is float:
        size = abs(value if isinstance(value, Integral) else float(value))
        if not (size <= sys.float_info.max or (not finite and size == math.inf)):
            raise ValueError(f"{name} must be finite, got {value!s:.80}.")
    if kind is int and not abs(value) <= LARGEST_WHOLE:
        raise ValueError(f"{name} must lie within plus and minus {LARGEST_WHOLE}, got {value!s:.80}.")


def check_positive(name: str, value) -> None:
    """Raise `ValueError` where a number is not positive and finite."""
    check_value(name, value, float)
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}.")


def check_not_negative(name: str, value) -> None:
    """Raise `ValueError` where a number is negative or not finite."""
    check_value(name, value, float)
    if not value >= 0:
        raise ValueError(f"{name} must not be negative, got {value}.")


def check_count(name: str, value, least: int) -> int:
    """The number; raises `ValueError` where it is not a whole one of at least `least`."""
    if not isinstance(value, Integral) or isinstance(value, bool) or not least <= value <= LARGEST_WHOLE:
        raise ValueError(f"{name} must be a whole number, at least {least}, got {value}.")
    return int(value)


def kind_of(hint) -> type:
    """`float` of `float | None`."""
    if isinstance(hint, types.UnionType):
        return next(kind for kind in typing.get_args(hint) if kind is not type(None))
    return hint


def _is_a(value, kind: type) -> bool:
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    return isinstance(value, kind)
