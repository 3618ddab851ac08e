"""A field of a settings dataclass, with its help text and its allowed values."""

from collections.abc import Sequence
from dataclasses import Field, field
from typing import Any


def option(
    default: Any,
    text: str = "",
    *,
    positive: bool = False,
    least: float | None = None,
    most: float | None = None,
    below: float | None = None,
    choices: Sequence | None = None,
) -> Any:
    """A dataclass field with its default, its help text and its allowed values.

    `moe_md.checks.check_fields`, called by the dataclass, checks the values.

    Args:
        default: its default value.
        text: what `--help` and settings files print beside it.
        positive: the value must be above zero.
        least: smallest allowed value.
        most: largest allowed value.
        below: the value must be smaller than this.
        choices: the allowed values.

    >>> from dataclasses import dataclass
    >>> from moe_md.checks import check_fields
    >>> @dataclass
    ... class Heating:
    ...     rate: float = option(0.2, "K/ps", positive=True)
    ...     __post_init__ = check_fields
    >>> Heating().rate, help_of(Heating.__dataclass_fields__["rate"])
    (0.2, 'K/ps')
    >>> Heating(rate=0.0)
    Traceback (most recent call last):
    ValueError: rate must be positive, got 0.0.
    """
    limits = {"positive": positive, "least": least, "most": most, "below": below, "choices": choices}
    return field(default=default, metadata={"help": text, "limits": limits})


def help_of(item: Field) -> str:
    """The help text of a field; empty where it has none."""
    return item.metadata.get("help", "")
