"""Restart files: a run that was killed goes on as if it had not been.

A reporter of `moe_md.simulate.run` writes state and neighbours, whole or not
at all; a new process reads them into the structures of a freshly begun run.
Neighbours are part of it: the order of a row, and the positions it was made
at, decide the last bits of the forces.

MessagePack of plain values and arrays below a checksum; nothing in a file is
ever executed. Functions are not stored: they come from the fresh structures.
"""

import dataclasses
import enum
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moe_md import files
from moe_md.simulate.run import Frame, State

FORMAT = 3


class Restart:
    """Keeps the last state of a run on disk, a reporter.

    The file is replaced as a whole. It belongs after the reporters that write
    trajectories: their frames are on disk when it says how far the run came.

    Args:
        path: file to write; the folder exists.
        every: chunks between restarts, at least 1. What `on_failure` and
            `close` find unwritten they write, so that only a kill costs them.
        fingerprint: what must be the same when the run continues, such as
            settings: anything that JSON holds.

    Raises:
        ValueError: `every` is not positive, or the fingerprint is not JSON.
        OSError: (when called) the file cannot be written; the older one stays.
    """

    def __init__(self, path, *, every: int = 1, fingerprint: dict | None = None):
        if int(every) != every or every < 1:
            raise ValueError(f"every must be a whole number of chunks, at least 1, got {every}.")
        self._path = Path(path)
        self._every = int(every)
        self._fingerprint = _as_json(fingerprint)
        self._chunks = 0
        self._unwritten: tuple[State, Any] | None = None

    def __call__(self, frame: Frame) -> None:
        del frame

    def on_state(self, state: State, neighbors) -> None:
        """Write, where it is time to: `state` and `neighbors` are pytrees of arrays."""
        self._unwritten = state, neighbors
        if self._chunks % self._every == 0:
            self.close()
        self._chunks += 1

    def on_failure(self, state: State) -> None:
        """Write the last state of which the trajectories know."""
        del state
        self.close()

    def close(self) -> None:
        """Write what is not yet written."""
        if self._unwritten is None:
            return
        state, neighbors = self._unwritten
        content = {"fingerprint": self._fingerprint, "state": _packed(state), "neighbors": _packed(neighbors)}
        files.write(self._path, FORMAT, content)
        self._unwritten = None


def load_restart(
    path, like_state: State, like_neighbors, fingerprint: dict | None = None
) -> tuple[State, Any]:
    """State and neighbours of a restart file, for `simulate.run(state=, neighbors=)`.

    Args:
        path: file that `Restart` wrote.
        like_state: state of a freshly begun run of the same system; its values
            are not used.
        like_neighbors: freshly allocated neighbours; capacities may differ.
        fingerprint: must equal the one that was stored.

    Returns:
        state: with arrays of the shapes and dtypes of `like_state`.
        neighbors: with arrays as large as those stored, and the functions of
            `like_neighbors`.

    Raises:
        ValueError: no restart file, of another format version, damaged, of
            another fingerprint, or of another kind of run.
    """
    path, wanted = Path(path), _as_json(fingerprint)
    content = files.read(path, "a whole moe_md restart", FORMAT, ("fingerprint", "state", "neighbors"))
    stored = content["fingerprint"]
    if stored != wanted:
        difference = _difference(json.loads(stored), json.loads(wanted))
        raise ValueError(f"{path} must be a restart of the same run, but {difference}.")
    try:
        state = _unpacked(like_state, content["state"], _Place("state", exact=True))
        neighbors = _unpacked(like_neighbors, content["neighbors"], _Place("neighbors", exact=False))
    except _Unfit as error:
        raise ValueError(f"{path} must fit the run that it continues, but {error}.") from None
    return state, neighbors


class _Unfit(Exception):
    """Stored and fresh structures differ; the message says where."""


class _Place(NamedTuple):
    """Where in a tree a value is, and what may change there."""

    name: str
    exact: bool  # arrays keep their shapes
    static: bool = False  # known when jitted: a capacity or a function

    def child(self, name: str, static: bool) -> "_Place":
        return _Place(f"{self.name}.{name}", self.exact, self.static or static)


def _children(node) -> list[tuple[str, Any, bool]] | None:
    """Name, value and whether it is static, of each part of a container; None for others."""
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        fields = dataclasses.fields(node)
        return [(f.name, getattr(node, f.name), bool(f.metadata.get("static"))) for f in fields]
    if isinstance(node, dict):
        return [(str(name), value, False) for name, value in node.items()]
    if isinstance(node, (tuple, list)):
        names = getattr(node, "_fields", map(str, range(len(node))))
        return [(name, value, False) for name, value in zip(names, node)]
    return None


def _with_children(node, values: list):
    """The same container of other values."""
    if dataclasses.is_dataclass(node):
        return dataclasses.replace(node, **{f.name: v for f, v in zip(dataclasses.fields(node), values)})
    if isinstance(node, dict):
        return dict(zip(node, values))
    return type(node)(*values) if hasattr(node, "_fields") else type(node)(values)


def _packed(node):
    """Containers as dicts, arrays as numpy arrays, plain values; functions are left out."""
    if _is_key(node):
        return {
            "implementation": str(jax.random.key_impl(node)),
            "data": np.asarray(jax.random.key_data(node)),
        }
    if _is_array(node):
        return node.item() if _is_number(node) else np.asarray(node)
    parts = _children(node)
    if parts is not None:
        return {name: _packed(value) for name, value, _ in parts if not _is_function(value)}
    if node is None or isinstance(node, (bool, int, float, str)):
        return node
    raise TypeError(f"a restart holds arrays, numbers and strings in containers, got {type(node).__name__}.")


def _unpacked(like, stored, at: _Place):
    """The stored values in the containers of `like`."""
    if _is_key(like):
        names = {"implementation", "data"}
        found = (
            str(stored["implementation"])
            if isinstance(stored, dict) and set(stored) == names
            else type(stored).__name__
        )
        if found != str(jax.random.key_impl(like)):
            raise _Unfit(f"{at.name} must be a random key of {jax.random.key_impl(like)}, got {found}")
        data = _unpacked(jax.random.key_data(like), stored["data"], at)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(like))
    if _is_number(like) and not at.static:
        # A number may have become an array of its kind on the way through a jitted function.
        kinds = [np.asarray(x).dtype.kind for x in (like, stored)] if np.ndim(stored) == 0 else ["", "array"]
        if kinds[0] != kinds[1]:
            raise _Unfit(f"{at.name} must be a number like {like!r}, got {stored!r}")
        return jnp.asarray(stored) if _is_array(like) or _is_array(stored) else stored
    if _is_array(like):
        wanted = f"{like.dtype}{list(like.shape) if at.exact else f' of {like.ndim} dimensions'}"
        if not _is_array(stored):
            raise _Unfit(f"{at.name} must be {wanted}, got {type(stored).__name__}")
        fits = stored.shape == like.shape if at.exact else stored.ndim == like.ndim
        if stored.dtype != like.dtype or not fits:
            raise _Unfit(f"{at.name} must be {wanted}, got {stored.dtype}{list(stored.shape)}")
        if at.static and not np.array_equal(stored, like):
            raise _Unfit(f"{at.name} must be {like}, got {stored}")
        return stored.copy() if isinstance(like, (np.ndarray, np.generic)) else jnp.asarray(stored)
    parts = _children(like)
    if parts is not None:
        names = [name for name, value, _ in parts if not _is_function(value)]
        if not isinstance(stored, dict) or sorted(stored) != sorted(names):
            found = sorted(stored) if isinstance(stored, dict) else type(stored).__name__
            raise _Unfit(f"{at.name} must hold {sorted(names)}, got {found}")
        return _with_children(
            like,
            [
                value if _is_function(value) else _unpacked(value, stored[name], at.child(name, static))
                for name, value, static in parts
            ],
        )
    if type(stored) is not type(like):
        raise _Unfit(f"{at.name} must be of type {type(like).__name__}, got {type(stored).__name__}")
    capacity = type(like) is int and not at.exact
    if at.static and stored != like and not capacity:
        raise _Unfit(f"{at.name} must be {like!r}, got {stored!r}")
    return stored


def _is_key(node) -> bool:
    return isinstance(node, jax.Array) and jnp.issubdtype(node.dtype, jax.dtypes.prng_key)


def _is_array(node) -> bool:
    return isinstance(node, (jax.Array, np.ndarray, np.generic))


def _is_number(node) -> bool:
    """A Python number, or the array that JAX makes of one: its dtype gives way to that of others."""
    if isinstance(node, jax.Array):
        return node.ndim == 0 and node.aval.weak_type
    return isinstance(node, (bool, int, float))


def _is_function(node) -> bool:
    return (callable(node) and _children(node) is None and not _is_array(node)) or isinstance(node, enum.Enum)


def _as_json(fingerprint: dict | None) -> str:
    """One string for equal fingerprints."""
    try:
        return json.dumps(dict(fingerprint or {}), sort_keys=True, default=lambda value: value.tolist())
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"fingerprint must be a dict that JSON holds: {error}.") from None


def _difference(stored: dict, given: dict) -> str:
    nothing = object()
    told = []
    for name in sorted({*stored, *given}):
        old, new = stored.get(name, nothing), given.get(name, nothing)
        if old != new:
            was, now = ("absent" if x is nothing else json.dumps(x) for x in (old, new))
            told.append(f"{name} was {was} and is {now}")
    return "; ".join(told)
