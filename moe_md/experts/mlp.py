"""Scalar networks: weights of unit variance, scaled in the forward pass."""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

NONLINEARITIES = {
    "silu": jax.nn.silu,
    "mish": jax.nn.mish,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "tanh": jnp.tanh,
}  # each zero at zero, which keeps masked slots zero


def unit_uniform(key: Array, shape: Sequence[int], dtype=jnp.float32) -> Array:
    """Uniform, with zero mean and unit variance."""
    return jax.random.uniform(key, shape, dtype, -(3.0**0.5), 3.0**0.5)


class ScalarMLP(nn.Module):
    """Network without biases, as the reference Allegro's: zero in, zero out.

    Layer weights are scaled by gain / sqrt(inputs), gain 1 for the first layer
    and sqrt(2) for those after a nonlinearity.
    """

    hidden: Sequence[int]
    output: int
    nonlinearity: Callable = jax.nn.silu

    @nn.compact
    def __call__(self, x: Array) -> Array:
        widths = (*self.hidden, self.output)
        for layer, width in enumerate(widths):
            gain = 1.0 if layer == 0 else 2.0**0.5
            weight = self.param(f"weight_{layer}", unit_uniform, (x.shape[-1], width))
            x = x @ (weight * (gain / x.shape[-1] ** 0.5))
            if layer < len(widths) - 1:
                x = self.nonlinearity(x)
        return x
