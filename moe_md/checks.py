"""Checks of settings and arguments: their types and their ranges."""

import difflib
import math
import sys
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from numbers import Integral, Real

MAX_INTEGER = 2**31 - 1


def check_fields(settings) -> None:
    """Check each field of a dataclass: its type, and the range that `settings.option` gave it.

    Args:
        settings: a dataclass of `int`, `float`, `bool`, `str` and other
            dataclasses, each of them or None. An integer is accepted as a
            float, a boolean is not a number, and numbers must be finite.

    Raises:
        ValueError: a field has another type, is not finite, is an integer
            beyond 2^31, or is outside its range.

    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Heating:
    ...     rate: float = 0.2
    ...     __post_init__ = check_fields
    >>> Heating("fast")
    Traceback (most recent call last):
    ValueError: rate must be of type float, got 'fast'.
    """
    hints = typing.get_type_hints(type(settings))
    for field in fields(settings):
        kind, value = kind_of(hints[field.name]), getattr(settings, field.name)
        if value is None and kind is not hints[field.name]:
            continue
        check_value(field.name, value, kind)
        check_limits(field.name, value, **field.metadata.get("limits", {}))


def check_value(name: str, value, kind: type, *, finite: bool = True) -> None:
    """Check the type of one value.

    Args:
        name: of the argument, for messages.
        value: the value.
        kind: `int`, `float`, or any type.
        finite: whether an infinite float is refused. NaN always is.

    Raises:
        ValueError: the value has another type, is not finite, or is an integer beyond 2^31.
    """
    if not _is_a(value, kind):
        expected = "a table" if is_dataclass(kind) else f"of type {kind.__name__}"
        raise ValueError(f"{name} must be {expected}, got {value!r:.80}.")
    if kind is float:
        size = abs(value if isinstance(value, Integral) else float(value))
        if not (size <= sys.float_info.max or (not finite and size == math.inf)):
            raise ValueError(f"{name} must be finite, got {value!s:.80}.")
    if kind is int and not abs(value) <= MAX_INTEGER:
        raise ValueError(f"{name} must lie within plus and minus {MAX_INTEGER}, got {value!s:.80}.")


def check_limits(
    name: str,
    value,
    *,
    positive: bool = False,
    least: float | None = None,
    most: float | None = None,
    below: float | None = None,
    choices: Sequence | None = None,
) -> None:
    """Check one value against the limits of `settings.option`.

    Args:
        name: of the argument, for messages.
        value: the value, of the right type.
        positive: it must be above zero.
        least: smallest allowed value.
        most: largest allowed value.
        below: the value must be smaller than this.
        choices: the allowed values.

    Raises:
        ValueError: the value is outside the limits.
    """
    if choices is not None and value not in choices:
        raise ValueError(f"{name} must be one of {tuple(choices)}, got {value!r:.80}.")
    if positive and not value > 0:
        raise ValueError(f"{name} must be positive, got {value}.")
    low = least is None or value >= least
    if most is not None and not (low and value <= most):
        raise ValueError(f"{name} must lie between {least} and {most}, got {value}.")
    if below is not None and not (low and value < below):
        raise ValueError(f"{name} must be in [{least}, {below}), got {value}.")
    if not low:
        expected = "not be negative" if least == 0 else f"be at least {least}"
        raise ValueError(f"{name} must {expected}, got {value}.")


def check_positive(name: str, value) -> None:
    """Raise `ValueError` unless the value is a number, finite and positive."""
    check_value(name, value, float)
    check_limits(name, value, positive=True)


def check_not_negative(name: str, value) -> None:
    """Raise `ValueError` unless the value is a number, finite and not negative."""
    check_value(name, value, float)
    check_limits(name, value, least=0)


def check_count(name: str, value, least: int) -> int:
    """The value as an integer; `ValueError` unless it is a whole number of at least `least`."""
    if not isinstance(value, Integral) or isinstance(value, bool) or not least <= value <= MAX_INTEGER:
        raise ValueError(f"{name} must be a whole number, at least {least}, got {value}.")
    return int(value)


def check_keywords(where: str, found: Iterable[str], known: Sequence[str]) -> None:
    """Raise `TypeError` where a keyword is unknown; the message names the nearest known one.

    >>> check_keywords("run", ["dr_treshold"], ("dtype", "dr_threshold"))
    Traceback (most recent call last):
    TypeError: run has no keyword 'dr_treshold': use 'dr_threshold'. Known are dtype, dr_threshold.
    """
    for name in found:
        if name not in known:
            within = [each for each in known if each in name]
            near = within or difflib.get_close_matches(name, known, 1)
            advice = f": use {near[0]!r}" if near else ""
            raise TypeError(f"{where} has no keyword {name!r}{advice}. Known are {', '.join(known)}.")


def kind_of(hint) -> type:
    """The type of a value that may be None: `float` for `float | None`."""
    if isinstance(hint, types.UnionType):
        return next(kind for kind in typing.get_args(hint) if kind is not type(None))
    return hint


def _is_a(value, kind: type) -> bool:
    """Whether a value has a type; an integer is a float, a boolean is neither."""
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    return isinstance(value, kind)
