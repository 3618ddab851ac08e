"""The progress of a training, and the file from which it is resumed.

The file holds everything that one step passes to the next. A training that is
killed and resumed ends with the same bits as one that was never stopped.
"""

from pathlib import Path
from typing import Any, NamedTuple

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np

from moe_md import files
from moe_md.training.step import TrainState

FORMAT = 4  # version of training.msgpack


class Best(NamedTuple):
    """The parameters with the lowest validation loss so far."""

    step: int  # 0 before the first validation
    loss: float  # infinite before the first validation
    average: tuple  # averaged parameters of that step


class Progress(NamedTuple):
    """The progress of a training after a complete step: the content of `training.msgpack`."""

    state: TrainState
    best: Best
    running: dict[str, float]  # smoothed errors of the training batches, meV/Å
    history: list[dict]  # results of each validation
    seconds: float  # duration of the training so far

    @property
    def step(self) -> int:
        """Number of steps done."""
        return int(self.state.step)


def is_finite(now: Progress) -> bool:
    """Whether errors and averaged parameters are finite; a NaN in the parameters stays in their average."""
    numbers = [*now.running.values(), *jax.tree.leaves((now.state.average, now.best.average))]
    return all(np.isfinite(x).all() for x in numbers)


def write(folder, now: Progress, fingerprint: dict) -> None:
    """Save the progress; `fingerprint` identifies the training."""
    content = {"fingerprint": fingerprint, **now._asdict(), **_trees(now)}
    files.write(Path(folder) / "training.msgpack", FORMAT, content)


def read(folder, initial: Progress, fingerprint: dict) -> Progress:
    """The progress saved in a folder, or `initial` if there is none; creates the folder.

    Args:
        folder: folder of `training.msgpack`.
        initial: progress before the first step, with the expected shapes and dtypes.
        fingerprint: identifies the training, as in `write`.

    Raises:
        ValueError: the folder holds another training, or a damaged file.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    path = Path(folder) / "training.msgpack"
    if not path.exists():
        return initial
    content = files.read(path, "a saved training", FORMAT, ("fingerprint", *Progress._fields))
    saved = content["fingerprint"] if isinstance(content["fingerprint"], dict) else {}
    other = [name for name in {**fingerprint, **saved} if saved.get(name) != fingerprint.get(name)]
    if other:
        raise ValueError(
            f"folder must hold no training of other {' and other '.join(other)}, "
            f"got {folder}: choose another."
        )
    expected, found = (
        files.signature(t, dtypes=True) for t in (_trees(initial), {k: content[k] for k in ("state", "best")})
    )
    if found != expected:
        raise ValueError(f"{path} must hold a state of shapes and dtypes {expected}, got {found}.")
    for name in ("state", "best"):
        tree = flax.serialization.from_state_dict(getattr(initial, name), content[name])
        content[name] = jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, tree)
    progress = Progress(*(content[name] for name in Progress._fields))
    if not _is_valid(progress, fingerprint["settings"]["steps"]):
        raise ValueError(
            f"{path} must hold a whole and finite training, got a damaged one: remove it to start again."
        )
    return progress


def _is_valid(saved: Progress, steps: int) -> bool:
    """Whether types, step numbers and values are those of a training of `steps` steps."""
    return (
        isinstance(saved.running, dict)
        and isinstance(saved.history, list)
        and isinstance(saved.seconds, float)
        and 0 <= saved.best.step <= saved.step <= steps
        and all(isinstance(x, float) for x in saved.running.values())
        and is_finite(saved)
    )


def _trees(now: Progress) -> dict[str, Any]:
    """Training state and best parameters as plain dicts of arrays and numbers."""
    plain = jax.tree.map(lambda x: x if isinstance(x, (int, float)) else np.asarray(x), (now.state, now.best))
    return {name: flax.serialization.to_state_dict(tree) for name, tree in zip(("state", "best"), plain)}
