"""Where a training stands, and the file it is taken up from.

All that one step hands to the next is saved, so that a training that was killed
ends, once it is started again, with the bits of one that never stopped.
"""

from pathlib import Path
from typing import Any, NamedTuple

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np

from moe_md import files

FORMAT = 4  # of training.msgpack


class State(NamedTuple):
    """What a training step changes."""

    step: jax.Array  # int
    params: tuple
    average: tuple  # exponential moving average of params
    optimizer: Any


class Best(NamedTuple):
    """The parameters of the lowest validation loss so far."""

    step: int  # 0 where nothing was validated yet
    loss: float  # infinite there
    average: tuple


class Progress(NamedTuple):
    """Where a training stands after a whole step: what `training.msgpack` holds."""

    state: State
    best: Best
    running: dict[str, float]  # smoothed errors, meV/Å
    history: list[dict]  # what validation measured
    seconds: float  # of training so far

    @property
    def step(self) -> int:
        """Steps done."""
        return int(self.state.step)


def is_finite(here: Progress) -> bool:
    """No NaN, no infinity: whatever broke the parameters stays in their average."""
    numbers = [*here.running.values(), *jax.tree.leaves((here.state.average, here.best.average))]
    return all(np.isfinite(x).all() for x in numbers)


def write(folder, here: Progress, fingerprint: dict) -> None:
    """Save a whole step; `fingerprint` says of which training."""
    content = {"fingerprint": fingerprint, **here._asdict(), **_trees(here)}
    files.write(Path(folder) / "training.msgpack", FORMAT, content)


def read(folder, initial: Progress, fingerprint: dict) -> Progress:
    """What a folder holds, `initial` where it holds nothing yet.

    Raises:
        ValueError: the folder holds another training, or a damaged one.
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
    wanted, trees = (
        files.signature(t, dtypes=True) for t in (_trees(initial), {k: content[k] for k in ("state", "best")})
    )
    if trees != wanted:
        raise ValueError(f"{path} must hold a state of shapes and dtypes {wanted}, got {trees}.")
    for name in ("state", "best"):
        tree = flax.serialization.from_state_dict(getattr(initial, name), content[name])
        content[name] = jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, tree)
    here = Progress(*(content[name] for name in Progress._fields))
    right = (
        isinstance(here.running, dict)
        and isinstance(here.history, list)
        and isinstance(here.seconds, float)
        and 0 <= here.best.step <= here.step <= fingerprint["settings"]["steps"]
        and all(isinstance(x, float) for x in here.running.values())
        and is_finite(here)
    )
    if not right:
        raise ValueError(
            f"{path} must hold a whole and finite training, got a damaged one: remove it to start anew."
        )
    return here


def _trees(here: Progress) -> dict:
    """State and best parameters as plain dicts of arrays and numbers."""
    plain = jax.tree.map(
        lambda x: x if isinstance(x, (int, float)) else np.asarray(x), (here.state, here.best)
    )
    return {name: flax.serialization.to_state_dict(tree) for name, tree in zip(("state", "best"), plain)}
