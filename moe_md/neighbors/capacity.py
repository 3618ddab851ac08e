"""Sizes of padded arrays.

Under jit the shapes of arrays are fixed, so arrays are allocated larger than they
are needed at first. Sizes are also rounded to a few values, so that one compiled
program serves many systems.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Int


def padded_capacity(factor: float, extra: int, needed: int) -> int:
    """Capacity to allocate where `needed` entries are needed now.

    >>> padded_capacity(1.25, 2, 10)
    15
    """
    return int(np.ceil(needed * factor)) + extra


def bucket_size(n: int) -> int:
    """The smallest of 1, 2, 3, 4, 6, 8, 12, 16, 24, ... that is at least `n`.

    >>> [bucket_size(n) for n in (1, 5, 7, 100)]
    [1, 6, 8, 128]
    """
    power = 1 << max(n - 1, 0).bit_length()
    return power * 3 // 4 if power >= 4 and power * 3 // 4 >= n else power


def first_true(
    mask: Bool[Array | np.ndarray, " n"], size: int, fill: int | None = None
) -> Int[Array, " {size}"]:
    """Indices of the first `size` True entries.

    Args:
        mask: the entries.
        size: capacity of the result; further True entries are dropped.
        fill: value of entries that are left over, default `n`.

    >>> first_true(jnp.array([False, True, True, False]), 3).tolist()
    [1, 2, 4]
    """
    fill = mask.shape[0] if fill is None else fill
    return jnp.nonzero(mask, size=size, fill_value=fill)[0].astype(jnp.int32)
