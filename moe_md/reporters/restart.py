"""Restart files, with which a killed run continues bit for bit.

A reporter of `moe_md.simulate.run` writes state and neighbours atomically. A new
process reads them into the structures of a run that it has set up. Neighbours are
stored because the order of neighbours in a row, and the positions at which the list
was built, determine the last bits of the forces.

A file is MessagePack of plain values and arrays with a checksum. Reading it executes
nothing. Functions are not stored; they are taken from the structures of the new run.
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

FORMAT = 4  # of files; raised when fields of the state or of neighbours change their names


class Restart:
    """A reporter that writes the last state of a run.

    The file is replaced atomically. List it after the reporters that write
    trajectories, so that their frames are on disk before the restart of that step.

    Args:
        path: file to write, in an existing folder.
        every: chunks between restarts, at least 1. `on_failure` and `close` write
            the last state if it is not yet written.
        fingerprint: values that must be equal when the run continues, such as
            settings; must be serialisable as JSON.

    Raises:
        ValueError: `every` is not positive, or the fingerprint is not JSON.
        OSError: (when called) the file cannot be written; the older one is kept.
    """

    def __init__(self, path, *, every: int = 1, fingerprint: dict | None = None) -> None:
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
        """Write every `every`-th state; `state` and `neighbors` are pytrees of arrays."""
        self._unwritten = state, neighbors
        if self._chunks % self._every == 0:
            self.close()
        self._chunks += 1

    def on_failure(self, state: State) -> None:
        """Write the last state that the trajectories contain."""
        del state
        self.close()

    def close(self) -> None:
        """Write the last state if it is not yet written."""
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
        like_state: state at step 0 of a run of the same system; its values are
            not used.
        like_neighbors: newly allocated neighbours; capacities may differ.
        fingerprint: must equal the stored one.

    Returns:
        state: with arrays of the shapes and dtypes of `like_state`.
        neighbors: with arrays of the stored sizes and the functions of
            `like_neighbors`.

    Raises:
        ValueError: the file is not a restart, is damaged, or has another format
            version, another fingerprint or the state of another kind of run.
    """
    path, expected = Path(path), _as_json(fingerprint)
    content = files.read(path, "a whole moe_md restart", FORMAT, ("fingerprint", "state", "neighbors"))
    stored = content["fingerprint"]
    if stored != expected:
        difference = _difference(json.loads(stored), json.loads(expected))
        raise ValueError(
            f"{path} must be a restart of the same run, but {difference}. "
            "Use the same settings, or start a new run in another folder."
        )
    try:
        state = _unpacked(like_state, content["state"], _TreePath("state", exact=True))
        neighbors = _unpacked(like_neighbors, content["neighbors"], _TreePath("neighbors", exact=False))
    except _Mismatch as error:
        raise ValueError(f"{path} must fit the run that it continues, but {error}.") from None
    return state, neighbors


class _Mismatch(Exception):
    """Stored and new structures differ; the message names the value."""


class _TreePath(NamedTuple):
    """The name of a value in a pytree, and which differences are allowed there."""

    name: str  # as "state.dynamics.position"
    exact: bool  # whether arrays must have the same shapes
    static: bool = False  # whether the value is static under jit

    def child(self, name: str, static: bool) -> "_TreePath":
        return _TreePath(f"{self.name}.{name}", self.exact, self.static or static)


def _children(node) -> list[tuple[str, Any, bool]] | None:
    """Name, value and staticness of each element of a container; None if `node` is not a container."""
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
    """A container like `node` with other values."""
    if dataclasses.is_dataclass(node):
        return dataclasses.replace(node, **{f.name: v for f, v in zip(dataclasses.fields(node), values)})
    if isinstance(node, dict):
        return dict(zip(node, values))
    return type(node)(*values) if hasattr(node, "_fields") else type(node)(values)


def _packed(node):
    """A pytree as nested dicts of numpy arrays and plain values; functions are left out."""
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
    raise TypeError(
        f"a restart can store arrays, numbers and strings in containers, got {type(node).__name__}."
    )


def _unpacked(like, stored, at: _TreePath):
    """The stored values in the containers of `like`; `_Mismatch` where they do not fit."""
    if _is_key(like):
        names = {"implementation", "data"}
        found = (
            str(stored["implementation"])
            if isinstance(stored, dict) and set(stored) == names
            else type(stored).__name__
        )
        if found != str(jax.random.key_impl(like)):
            raise _Mismatch(f"{at.name} must be a random key of {jax.random.key_impl(like)}, got {found}")
        data = _unpacked(jax.random.key_data(like), stored["data"], at)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(like))
    if _is_number(like) and not at.static:
        # A jitted function returns a Python number as an array of the same kind.
        kinds = [np.asarray(x).dtype.kind for x in (like, stored)] if np.ndim(stored) == 0 else ["", "array"]
        if kinds[0] != kinds[1]:
            raise _Mismatch(f"{at.name} must be a number like {like!r}, got {stored!r}")
        return jnp.asarray(stored) if _is_array(like) or _is_array(stored) else stored
    if _is_array(like):
        expected = f"{like.dtype}{list(like.shape) if at.exact else f' of {like.ndim} dimensions'}"
        if not _is_array(stored):
            raise _Mismatch(f"{at.name} must be {expected}, got {type(stored).__name__}")
        fits = stored.shape == like.shape if at.exact else stored.ndim == like.ndim
        if stored.dtype != like.dtype or not fits:
            raise _Mismatch(f"{at.name} must be {expected}, got {stored.dtype}{list(stored.shape)}")
        if at.static and not np.array_equal(stored, like):
            raise _Mismatch(f"{at.name} must be {like}, got {stored}")
        return stored.copy() if isinstance(like, (np.ndarray, np.generic)) else jnp.asarray(stored)
    parts = _children(like)
    if parts is not None:
        names = [name for name, value, _ in parts if not _is_function(value)]
        if not isinstance(stored, dict) or sorted(stored) != sorted(names):
            found = sorted(stored) if isinstance(stored, dict) else type(stored).__name__
            raise _Mismatch(f"{at.name} must hold {sorted(names)}, got {found}")
        return _with_children(
            like,
            [
                value if _is_function(value) else _unpacked(value, stored[name], at.child(name, static))
                for name, value, static in parts
            ],
        )
    if type(stored) is not type(like):
        raise _Mismatch(f"{at.name} must be of type {type(like).__name__}, got {type(stored).__name__}")
    capacity = type(like) is int and not at.exact
    if at.static and stored != like and not capacity:
        raise _Mismatch(f"{at.name} must be {like!r}, got {stored!r}")
    return stored


def _is_key(node) -> bool:
    return isinstance(node, jax.Array) and jnp.issubdtype(node.dtype, jax.dtypes.prng_key)


def _is_array(node) -> bool:
    return isinstance(node, (jax.Array, np.ndarray, np.generic))


def _is_number(node) -> bool:
    """Whether `node` is a Python number, or a JAX scalar of weak type."""
    if isinstance(node, jax.Array):
        return node.ndim == 0 and node.aval.weak_type
    return isinstance(node, (bool, int, float))


def _is_function(node) -> bool:
    return (callable(node) and _children(node) is None and not _is_array(node)) or isinstance(node, enum.Enum)


def _as_json(fingerprint: dict | None) -> str:
    """A string that is equal for equal fingerprints."""
    try:
        return json.dumps(dict(fingerprint or {}), sort_keys=True, default=lambda value: value.tolist())
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"fingerprint must be a dict that JSON can store: {error}.") from None


def _difference(stored: dict, given: dict) -> str:
    """The names and values that differ, as text."""
    absent = object()
    differences = []
    for name in sorted({*stored, *given}):
        old, new = stored.get(name, absent), given.get(name, absent)
        if old != new:
            was, now = ("absent" if x is absent else json.dumps(x) for x in (old, new))
            differences.append(f"{name} was {was} and is {now}")
    return "; ".join(differences)
