"""Checkpoints: experts, parameters and how they were made, in one file.

MessagePack of plain values and arrays; nothing in a file is ever executed.
Written under another name and renamed, so that a file is whole or absent.
"""

import os
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import flax.serialization
import jax
import numpy as np

from moe_md.experts import Expert, Params, build

FORMAT = 1


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
    """
    content = {
        "format": FORMAT,
        "experts": [e.config for e in checkpoint.experts],
        "params": [jax.tree.map(np.asarray, p) for p in checkpoint.params],
        "settings": checkpoint.settings,
        "record": checkpoint.record,
    }
    write_atomic(path, flax.serialization.msgpack_serialize(content))


def load(name_or_path) -> Checkpoint:
    """Read a checkpoint that comes with the package, or a file.

    Args:
        name_or_path: `"ptco"`, or a path.

    Raises:
        ValueError: no such name or file, not a checkpoint, of another format
            version, or its parameters do not fit its experts.
    """
    path = Path(name_or_path)
    if not path.is_file() and str(name_or_path) in names():  # also beside a folder of that name
        path = Path(str(resources.files("moe_md") / "checkpoints" / f"{name_or_path}.msgpack"))
    if not path.is_file():
        raise ValueError(f"name_or_path must be one of {names()} or an existing file, got {str(name_or_path)!r}.")
    try:
        content = flax.serialization.msgpack_restore(path.read_bytes())
        version = content["format"]
    except Exception as error:
        raise ValueError(f"{path} must be a moe_md checkpoint, but it cannot be read: {error}.") from None
    if version != FORMAT:
        raise ValueError(f"{path} must have checkpoint format {FORMAT}, got {version!r}.")
    missing = [key for key in ("experts", "params", "settings", "record") if key not in content]
    if missing:
        raise ValueError(f"{path} must be a moe_md checkpoint, but it holds no {', '.join(missing)}.")
    configs, params = (_in_order(path, key, content[key]) for key in ("experts", "params"))
    if len(configs) != len(params):
        raise ValueError(f"{path} must hold parameters for each of its {len(configs)} experts, got {len(params)}.")
    experts = tuple(build(config) for config in configs)
    for expert, tree in zip(experts, params):
        _check_params(path, expert, tree)
    return Checkpoint(experts, tuple(params), content["settings"], content["record"])


def write_atomic(path, content: bytes) -> None:
    """Write bytes so that `path` holds either the old or the new content."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _in_order(path: Path, key: str, value) -> list:
    """A list of dicts, also where it was stored as a dict of indices."""
    if isinstance(value, dict) and all(str(k).isdecimal() for k in value):
        value = [value[k] for k in sorted(value, key=int)]
    if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
        raise ValueError(f"{path} must hold a list of {key}, one dict each, got {value!r:.80}.")
    return value


def _check_params(path: Path, expert: Expert, params: Params) -> None:
    wanted = jax.eval_shape(expert.init, jax.random.key(0))
    shapes = jax.tree_util.tree_map(lambda x: tuple(x.shape), wanted)
    found = jax.tree_util.tree_map(lambda x: tuple(x.shape) if _is_numeric(x) else type(x).__name__, params)
    if shapes != found:
        raise ValueError(
            f"{path} must hold parameters of shapes {shapes} for {expert.config['builder']}, got {found}."
        )


def _is_numeric(x) -> bool:
    # dtype.kind "V" is numpy's view of bfloat16.
    return isinstance(x, (np.ndarray, np.generic)) and x.dtype.kind in "fV"
