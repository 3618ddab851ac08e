"""Files that are written whole or not at all, and read only if they are as they were written.

MessagePack of plain values and arrays; nothing in a file is ever executed.
Written under another name and renamed, so that a file is whole or absent.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

MAX_DEPTH = 32  # of what a file nests


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
    write_atomic(path, _packed({**content, "sha256": _sha256(content)}))


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
    from flax.serialization import msgpack_restore

    path = Path(path)
    try:
        content = msgpack_restore(path.read_bytes())
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


def write_json(path, content: dict) -> None:
    """A file of JSON, whole or not at all; arrays become lists."""
    write_atomic(path, (json.dumps(content, indent=2, default=plain) + "\n").encode())


def plain(value):
    """What JSON has no word for, as it has one: for `json.dumps(default=)`."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def signature(tree, *, dtypes: bool):
    """Shapes, and dtypes if asked for, of a tree of dicts and arrays; the type of what is neither."""
    if isinstance(tree, dict):
        return {key: signature(value, dtypes=dtypes) for key, value in tree.items()}
    if not hasattr(tree, "dtype"):
        return type(tree).__name__
    return (tuple(tree.shape), str(tree.dtype)) if dtypes else tuple(tree.shape)


def _packed(content: dict) -> bytes:
    """Content as MessagePack."""
    from flax.serialization import msgpack_serialize  # imports jax, which few callers of this module need

    return msgpack_serialize(content)


def _sha256(content: dict) -> str:
    return hashlib.sha256(_packed(content)).hexdigest()


def _check_plain(value, depth: int = 0) -> None:
    """Plain values and arrays only, nested no deeper than anything we write."""
    import numpy as np

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
