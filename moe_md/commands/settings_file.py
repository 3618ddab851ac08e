"""Settings in a TOML file.

Tables are named after commands; keys are the fields of settings dataclasses, or the arguments of the
builders of experts.
"""

import inspect
import re
import shlex
import tomllib
import typing
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path

import tomlkit
import tomlkit.items

from moe_md.files import write_atomic
from moe_md.renamed import KEYS, MOVED
from moe_md.settings import (
    BenchSettings,
    DataSettings,
    DemoSettings,
    EnvironmentSettings,
    ExportSettings,
    RegionScanSettings,
    RunSettings,
    TrainSettings,
    ValidateSettings,
    help_of,
)

# Tables whose keys are fields of a class.
SETTINGS = {
    "data": DataSettings,
    "environments": EnvironmentSettings,
    "training": TrainSettings,
    "demo": DemoSettings,
    "validate": ValidateSettings,
    "region": RegionScanSettings,
    "run": RunSettings,
    "export": ExportSettings,
    "bench": BenchSettings,
}
TABLES = ("expensive", "cheap", *SETTINGS)


def tables(file) -> dict:
    """The tables of a settings file; `{}` if the file is None.

    Raises:
        ValueError: the file does not exist, is not TOML, or has an unknown table or key. Keys of all
            tables are checked, also of those that a command does not use.
    """
    if file is None:
        return {}
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"settings must be an existing TOML file, got {file}.")
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"settings must be a TOML file, got {file}: {error}.") from None
    check_keys(found, ("start", *TABLES), str(file))
    if not isinstance(found.get("start", ""), str):
        raise ValueError(
            f"start of {file} must be the name or path of a checkpoint, got {found['start']!r:.80}."
        )
    for name, table in found.items():
        if name != "start" and not isinstance(table, dict):
            raise ValueError(f"{name} of {file} must be a table, [{name}], got {table!r}.")
    for name, cls in SETTINGS.items():
        _check_fields(found.get(name, {}), cls, f"[{name}] of {file}")
    return found


def settings(cls, name: str, parsed):
    """A settings dataclass from defaults, a table of the settings file, and options, in this order.

    Args:
        cls: the dataclass.
        name: of the table.
        parsed: options by field; `settings` is the file.

    Raises:
        ValueError: a key is unknown, or a value does not fit.
    """
    table = tables(parsed.settings).get(name, {})
    options = {
        f.name: getattr(parsed, f.name) for f in fields(cls) if getattr(parsed, f.name, None) is not None
    }
    return filled(cls, table, f"[{name}] of {parsed.settings}", options)


def filled(cls, table: dict, where: str, options: dict | None = None):
    """A settings dataclass with the values of a table; options override them.

    Args:
        cls: the dataclass.
        table: values by key; a dataclass among the fields is a table too.
        where: name of the table, for messages.
        options: values by field.

    Raises:
        ValueError: a key is unknown, or a value does not fit.
    """
    _check_fields(table, cls, where)
    hints = typing.get_type_hints(cls)
    values = {
        key: filled(hints[key], value, f"[{key}] in {where}") if is_dataclass(hints[key]) else value
        for key, value in table.items()
    }
    try:
        return cls(**{**values, **(options or {})})
    except ValueError as error:
        raise ValueError(f"{where}: {error}" if table else str(error)) from error


def _check_fields(table: dict, cls, where: str) -> None:
    """Raise `ValueError` where a key is no field of a class, or a field that is a table has a value."""
    check_keys(table, [f.name for f in fields(cls)], where)
    hints = typing.get_type_hints(cls)
    for key, value in table.items():
        if not is_dataclass(hints[key]):
            continue
        if not isinstance(value, dict):
            raise ValueError(f"{key} in {where} must be a table, got {value!r}.")
        _check_fields(value, hints[key], f"[{key}] in {where}")


def check_keys(table: dict, allowed, where: str) -> None:
    """Raise `ValueError` if a table has an unknown key; the message names the new key of a renamed one."""
    unknown = sorted(set(table) - set(allowed))
    for name in unknown:
        if KEYS.get(name) in allowed:
            raise ValueError(f"unknown key {name!r} in {where}: it is now {KEYS[name]!r}.")
        if name in MOVED:
            elsewhere = "" if MOVED[name] in allowed else " of [environments]"
            raise ValueError(f"unknown key {name!r} in {where}: it is now {MOVED[name]!r}{elsewhere}.")
    if unknown:
        raise ValueError(
            f"unknown key {', '.join(map(repr, unknown))} in {where}: allowed are {', '.join(allowed)}."
        )


def echo(folder, content: dict, command: Sequence[str]) -> Path:
    """Write `settings.toml` into a folder of results: it repeats the command.

    Args:
        folder: made if it does not exist.
        content: tables, as `written` takes them.
        command: the arguments of `moe-md`, for the first line.

    Returns:
        The path of the file.
    """
    path = Path(folder) / "settings.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    # Names of files that the locale cannot decode reach the command line as surrogates of their bytes.
    write_atomic(path, written(content, [f"moe-md {shlex.join(command)}"]).encode(errors="surrogateescape"))
    return path


def written(content: dict, header: Sequence[str] = ()) -> str:
    """Settings as TOML, each key with its help text as a comment.

    Args:
        content: by table, a settings dataclass or the configuration of an
            expert. A text, such as `start`, becomes a key above the tables.
        header: lines of comment at the top.

    Returns:
        A text that `tables` reads; a value of None is written as a comment.
    """
    document = tomlkit.document()
    for line in header:
        document.add(tomlkit.comment(line))
    for name, value in sorted(content.items(), key=lambda item: not isinstance(item[1], str)):
        if isinstance(value, str):
            document.add(name, tomlkit.item(value))
            continue
        document.add(tomlkit.nl())
        document.add(name, _settings_table(value) if is_dataclass(value) else _expert_table(value))
    return tomlkit.dumps(document)


def _settings_table(settings) -> tomlkit.items.Table:
    values = {f.name: getattr(settings, f.name) for f in fields(settings)}
    plain = {name: value for name, value in values.items() if not is_dataclass(value)}
    table = _table(plain, {f.name: help_of(f) for f in fields(settings)})
    for name in values.keys() - plain.keys():
        table.add(name, _settings_table(values[name]))
    return table


def _expert_table(config: dict) -> tomlkit.items.Table:
    """The configuration of an expert; comments come from the docstring of its builder."""
    from moe_md.experts.base import BUILDERS

    text = inspect.getdoc(BUILDERS[config["builder"]]) or ""
    comments = {}
    for names, words in re.findall(r"^    (\w+(?:, \w+)*): (.*(?:\n        .*)*)", text, re.MULTILINE):
        comments |= dict.fromkeys(names.split(", "), " ".join(words.split()).removesuffix("."))
    return _table(config, {name: comments.get(name, "") for name in config})


def _table(values: dict, comments: dict[str, str]) -> tomlkit.items.Table:
    table = tomlkit.table()
    for name, value in values.items():
        if value is None:
            table.add(tomlkit.comment(f"{name} =  # {comments[name]}"))
            continue
        item = tomlkit.item(list(value) if isinstance(value, tuple) else value)
        if comments[name]:
            item.comment(comments[name])
        table.add(name, item)
    return table
