"""Reverse mode in less memory: nested segments of which only the starts are stored.

With L levels of n^(1/L) segments, L n^(1/L) states are stored, for up to L further
forward passes.

Source: Griewank, Walther, ACM TOMS 26, 19 (2000); here with equal segments.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_md.checks import check_count


def levels_for(checkpoint: str | int | None, n_steps: int, unit: int) -> int:
    """Levels of nested segments for a `checkpoint` option; zero stores everything."""
    if checkpoint is None:
        return 0
    own, n_units = unit if unit > 1 else 0, n_steps // unit
    if checkpoint == "sqrt":
        budget = 2 * int(np.ceil(np.sqrt(n_steps))) + own
    elif isinstance(checkpoint, str):
        raise ValueError(f'checkpoint must be None, "sqrt" or a number of states, got {checkpoint!r}.')
    else:
        budget = check_count("checkpoint", checkpoint, 1)
    most = max(1, int(np.ceil(np.log2(max(n_units, 1)))))
    stored = [level * _root(n_units, level) + own for level in range(1, most + 1)]
    for level, count in enumerate(stored, 1):
        if count <= budget:
            return level
    raise ValueError(
        f"checkpoint must be at least {min(stored)} states for {n_steps} steps in groups of {unit}, "
        f"got {checkpoint}."
    )


def _root(n: int, level: int) -> int:
    """Smallest integer whose `level`-th power is at least n."""
    root = round(n ** (1.0 / level))
    return next(r for r in range(max(root - 1, 0), root + 2) if r**level >= n)


def scan(body: Callable, carry, n: int) -> tuple[Any, Any]:
    """`body` n times, `(carry) -> (carry, output)`."""
    return jax.lax.scan(lambda c, _: body(c), carry, None, n)


def nested_scan(body: Callable, carry, n: int, levels: int) -> tuple[Any, Any]:
    """`body` n times; with two or more levels in segments of which only the start is stored."""
    if levels < 2 or n < 4:
        return scan(body, carry, n)
    length = -(-n // _root(n, levels))
    full, rest = divmod(n, length)
    segment = jax.checkpoint(lambda c: nested_scan(body, c, length, levels - 1), prevent_cse=False)
    carry, seen = scan(segment, carry, full)
    seen = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), seen)
    if rest:
        carry, more = jax.checkpoint(lambda c: nested_scan(body, c, rest, levels - 1))(carry)
        seen = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), seen, more)
    return carry, seen
