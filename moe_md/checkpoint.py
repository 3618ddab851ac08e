"""Checkpoints: experts, parameters and how they were made, in one file.

MessagePack of plain values and arrays; nothing in a file is ever executed.
Written under another name and renamed, so that a file is whole or absent.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np

from moe_md.experts import Expert, Params, build

FORMAT = 1
MAX_DEPTH = 32  # of what a file nests


class Checkpoint(NamedTuple):
    """What training leaves behind."""

    experts: tuple[Expert, ...]  # most expensive first
    params: tuple[Params, ...]
    settings: dict  # what training was told
    record: dict  # what training measured


def names() -> list[str]:
    """Checkpoints that come with the package."""
    folder = resources.files("moe_md") / "checkpoints"
    return sorted(p.name.removesuffix(".msgpack") for p in folder.iterdir() if p.name.endswith(".msgpack"))


def save(path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, whole or not at all.

    Args:
        path: file to write; the folder exists.
        checkpoint: params may be jax or numpy arrays.

    Raises:
        OSError: the file cannot be written; what was there before is whole.
    """
    content = {
        "experts": [e.config for e in checkpoint.experts],
        "params": [jax.tree.map(np.asarray, p) for p in checkpoint.params],
        "settings": checkpoint.settings,
        "record": checkpoint.record,
    }
    write(path, FORMAT, content)


def load(name_or_path) -> Checkpoint:
    """Read a checkpoint that comes with the package, or a file.

    Args:
        name_or_path: `"ptco"`, another of `names()`, or a path.

    Raises:
        ValueError: no such name or file, not a checkpoint, not as it was
            written, of another format version, or its parameters do not fit its
            experts or are not finite.
    """
    path = Path(name_or_path)
    if not path.is_file() and str(name_or_path) in names():  # also beside a folder of that name
        path = Path(str(resources.files("moe_md") / "checkpoints" / f"{name_or_path}.msgpack"))
    if not path.is_file():
        raise ValueError(
            f"name_or_path must be one of {names()} or an existing file, got {str(name_or_path)!r}."
        )
    content = read(path, "a moe_md checkpoint", FORMAT, ("experts", "params", "settings", "record"))
    configs, params = (_in_order(path, key, content[key]) for key in ("experts", "params"))
    if len(configs) != len(params):
        raise ValueError(
            f"{path} must hold parameters for each of its {len(configs)} experts, got {len(params)}."
        )
    for key in ("settings", "record"):
        if not isinstance(content[key], dict):
            raise ValueError(f"{path} must hold a dict of {key}, got {content[key]!r:.80}.")
    experts = []
    for config, tree in zip(configs, params):
        try:
            experts.append(build(config))
            wanted = jax.eval_shape(experts[-1].init, jax.random.key(0))
        except Exception as error:  # a tampered config may upset any part of a network
            raise ValueError(
                f"{path} must describe experts that can be built, got {config!r:.200}: {error}"
            ) from error
        _check_params(path, config["builder"], wanted, tree)
    return Checkpoint(tuple(experts), tuple(params), content["settings"], content["record"])


def write(path, version: int, content: dict) -> None:
    """Write plain values and arrays, with their format version and their SHA-256.

    Args:
        path: file to write; the folder exists.
        version: stored as `format`.
        content: a dict of dicts, lists, numbers, text and arrays.

    Raises:
        OSError: the file cannot be written; what was there before is whole.
    """
    content = {"format": version, **content}
    write_atomic(path, flax.serialization.msgpack_serialize({**content, "sha256": _sha256(content)}))


def read(path, what: str, version: int, keys: Sequence[str]) -> dict:
    """What `write` wrote.

    The digest tells damage from a file as it was written (files of before the
    digest carry none); it is no signature.

    Args:
        path: the file.
        what: it must be, for messages.
        version: its `format` must be.
        keys: it must hold.

    Returns:
        The content, with `format`.

    Raises:
        ValueError: the file cannot be read, is of another version, is not as it
            was written, lacks a key, or holds anything else.
    """
    path = Path(path)
    try:
        content = flax.serialization.msgpack_restore(path.read_bytes())
        _check_plain(content)
        found = content["format"]
    except Exception as error:  # garbage upsets the decoder in many ways
        raise ValueError(
            f"{path} must be {what}, but it cannot be read: {type(error).__name__}: {error}."
        ) from None
    if type(found) is not type(version) or found != version:
        raise ValueError(f"{path} must have {what.split()[-1]} format {version}, got {found!r:.80}.")
    digest = content.pop("sha256", None)
    if digest is not None and digest != _sha256(content):
        raise ValueError(f"{path} must be {what} as it was written, but its content has changed since.")
    missing, unknown = set(keys) - set(content), set(content) - {"format", *keys}
    if missing or unknown:
        problem = (
            f"holds no {', '.join(sorted(missing))}" if missing else f"also holds {sorted(map(str, unknown))}"
        )
        raise ValueError(f"{path} must be {what}, but it {problem}.")
    return content


def write_atomic(path, content: bytes) -> None:
    """Write bytes so that `path` holds either the old or the new content.

    Raises:
        OSError: the new content cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            reason = f"cannot be written, what was there before is kept: {error.strerror or error}"
            raise OSError(error.errno, reason, str(path)) from error
        raise


def signature(tree, *, dtypes: bool):
    """Shapes, and dtypes if asked for, of a tree of dicts and arrays; the type of what is neither."""
    if isinstance(tree, dict):
        return {key: signature(value, dtypes=dtypes) for key, value in tree.items()}
    if not hasattr(tree, "dtype"):
        return type(tree).__name__
    return (tuple(tree.shape), str(tree.dtype)) if dtypes else tuple(tree.shape)


def _sha256(content: dict) -> str:
    return hashlib.sha256(flax.serialization.msgpack_serialize(content)).hexdigest()


def _check_plain(value, depth: int = 0) -> None:
    """Plain values and arrays only, nested no deeper than anything we write."""
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, (str, int)):
                raise ValueError(f"a key is {key!r:.80}")
            _check_plain(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_plain(item, depth + 1)
    elif not isinstance(value, (np.ndarray, np.generic, str, bool, int, float, type(None))):
        raise ValueError(f"it holds {value!r:.80}")


def _in_order(path: Path, key: str, value) -> list:
    """A list of dicts, also where it was stored as a dict of indices."""
    if isinstance(value, dict) and all(str(k).isdecimal() for k in value):
        value = [value[k] for k in sorted(value, key=int)]
    if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
        raise ValueError(f"{path} must hold a list of {key}, one dict each, got {value!r:.80}.")
    return value


def _check_params(path: Path, builder: str, wanted: Params, params: Params) -> None:
    wanted, found = (signature(tree, dtypes=False) for tree in (wanted, params))
    if wanted != found:
        raise ValueError(f"{path} must hold parameters of shapes {wanted} for {builder}, got {found}.")
    for leaf in jax.tree.leaves(params):
        if not jnp.issubdtype(leaf.dtype, jnp.floating) or not np.isfinite(leaf.astype(float)).all():
            raise ValueError(
                f"{path} must hold finite floating-point parameters for {builder}, got {leaf!r:.80}."
            )


def write_json(path, content: dict) -> None:
    """A file of JSON, whole or not at all; arrays become lists."""
    write_atomic(path, (json.dumps(content, indent=2, default=plain) + "\n").encode())


def plain(value):
    """What JSON has no word for, as it has one: for `json.dumps(default=)`."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
