"""Files that are written atomically, and read only if they are unchanged since.

The format is MessagePack of plain values and arrays; reading executes no code
from a file. A file is written under a temporary name and then renamed.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

MAX_DEPTH = 32  # deepest nesting that is read


def write(path, version: int, content: dict) -> None:
    """Write plain values and arrays, with their format version and their SHA-256.

    Args:
        path: file to write, in an existing folder.
        version: format version, stored as `format`.
        content: a dict of dicts, lists, numbers, text and arrays.

    Raises:
        OSError: the file cannot be written; a previous file is unchanged.
    """
    content = {"format": version, **content}
    write_atomic(path, _packed({**content, "sha256": _sha256(content)}))


def read(path, what: str, version: int, keys: Sequence[str]) -> dict:
    """The content of a file written by `write`.

    The stored SHA-256 detects damage; it does not protect against tampering.
    Files of earlier versions have none and are read without this check.

    Args:
        path: the file.
        what: description of the expected file, for error messages.
        version: expected format version.
        keys: keys that the content must have, besides `format`.

    Returns:
        The content, with `format`.

    Raises:
        ValueError: the file cannot be read, has another format version, was
            changed after it was written, or has missing or unknown keys.
    """
    from flax.serialization import msgpack_restore

    path = Path(path)
    try:
        content = msgpack_restore(path.read_bytes())
        _check_plain(content)
        found = content["format"]
    except Exception as error:  # the decoder raises many types on invalid files
        raise ValueError(
            f"{path} must be {what}, but it cannot be read: {type(error).__name__}: {error}."
        ) from None
    if type(found) is not type(version) or found != version:
        raise ValueError(f"{path} must have {what.split()[-1]} format {version}, got {found!r:.80}.")
    digest = content.pop("sha256", None)
    if digest is not None and digest != _sha256(content):
        raise ValueError(f"{path} must be {what}, but its content has changed since it was written.")
    missing, unknown = set(keys) - set(content), set(content) - {"format", *keys}
    if missing or unknown:
        problem = (
            f"holds no {', '.join(sorted(missing))}" if missing else f"also holds {sorted(map(str, unknown))}"
        )
        raise ValueError(f"{path} must be {what}, but it {problem}.")
    return content


def write_atomic(path, content: bytes) -> None:
    """Write bytes so that `path` has either its old or its new content at any time.

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
            reason = f"cannot be written, the previous file is unchanged: {error.strerror or error}"
            raise OSError(error.errno, reason, str(path)) from error
        raise


def write_json(path, content: dict) -> None:
    """Write JSON atomically; arrays become lists."""
    write_atomic(path, (json.dumps(content, indent=2, default=plain) + "\n").encode())


def plain(value) -> object:
    """Lists of arrays, text of everything else: for `json.dumps(default=)`."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def signature(tree, *, dtypes: bool) -> dict | tuple | str:
    """Tree of the shapes of all arrays (with dtypes on request), and of the type names of other values."""
    if isinstance(tree, dict):
        return {key: signature(value, dtypes=dtypes) for key, value in tree.items()}
    if not hasattr(tree, "dtype"):
        return type(tree).__name__
    return (tuple(tree.shape), str(tree.dtype)) if dtypes else tuple(tree.shape)


def _packed(content: dict) -> bytes:
    """Content as MessagePack."""
    from flax.serialization import msgpack_serialize  # here, as it imports jax

    return msgpack_serialize(content)


def _sha256(content: dict) -> str:
    return hashlib.sha256(_packed(content)).hexdigest()


def _check_plain(value, depth: int = 0) -> None:
    """Raise on anything but plain values and arrays, or on nesting deeper than `MAX_DEPTH`."""
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
