"""Scalar networks: parameters of unit variance, scaled in the forward pass."""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, PRNGKeyArray

NONLINEARITIES = {
    "silu": jax.nn.silu,
    "mish": jax.nn.mish,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "tanh": jnp.tanh,
}  # each is zero at zero, so that masked slots stay zero


def unit_uniform(key: PRNGKeyArray, shape: Sequence[int], dtype=jnp.float32) -> Float[Array, "..."]:
    """Uniform random numbers with zero mean and unit variance."""
    return jax.random.uniform(key, shape, dtype, -(3.0**0.5), 3.0**0.5)


class ScalarMLP(nn.Module):
    """Network without biases, as in the reference Allegro: zero input gives zero output.

    Kernels are scaled by gain / sqrt(inputs), with gain 1 for the first layer and
    sqrt(2) for layers after a nonlinearity.
    """

    hidden: Sequence[int]
    output: int
    nonlinearity: Callable = jax.nn.silu

    @nn.compact
    def __call__(self, x: Float[Array, "*n inputs"]) -> Float[Array, "*n outputs"]:
        widths = (*self.hidden, self.output)
        for layer, width in enumerate(widths):
            gain = 1.0 if layer == 0 else 2.0**0.5
            kernel = self.param(f"weight_{layer}", unit_uniform, (x.shape[-1], width))
            x = x @ (kernel * (gain / x.shape[-1] ** 0.5))
            if layer < len(widths) - 1:
                x = self.nonlinearity(x)
        return x
