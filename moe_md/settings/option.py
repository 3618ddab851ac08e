"""A field of a settings dataclass and what `--help` and settings files say of it."""

from dataclasses import Field, field
from typing import Any


def option(default: Any, text: str) -> Any:
    """A dataclass field with its default and its text.

    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Cup:
    ...     volume: float = option(0.2, "litres")
    >>> Cup().volume, help_of(Cup.__dataclass_fields__["volume"])
    (0.2, 'litres')
    """
    return field(default=default, metadata={"help": text})


def help_of(item: Field) -> str:
    """The text of a field, empty where it has none."""
    return item.metadata.get("help", "")
