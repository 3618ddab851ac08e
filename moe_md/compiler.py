"""`jax.jit` with options of XLA that make loops over neighbours faster on CPU."""

from collections.abc import Callable
from functools import cache, cached_property, update_wrapper

import jax

# XLA for CPU adds up the terms of a sum one after another. These options let it add them up in any
# order, as sums on a GPU are, with vector instructions. The other liberties of fast math stay off:
# values that are not finite, division and special functions are computed as without.
ANY_ORDER = {
    "xla_cpu_enable_fast_math": True,
    "xla_cpu_fast_math_honor_nans": True,
    "xla_cpu_fast_math_honor_infs": True,
    "xla_cpu_fast_math_honor_division": True,
    "xla_cpu_fast_math_honor_functions": True,
}


@cache
def compiler_options() -> dict[str, bool] | None:
    """Options for `jax.jit(step, compiler_options=...)` that make experts of sums faster on CPU.

    Results change by rounding. `simulate.run`, the ASE calculator and the LAMMPS interface
    are compiled with them.

    Returns:
        The options; None on other backends, or where jax does not know them.
    """
    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda x: x, compiler_options=ANY_ORDER).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return None
    return ANY_ORDER


class fast_jit:
    """`jax.jit` with `compiler_options`, which are asked for at the first call."""

    def __init__(self, fn: Callable, **kwargs):
        self._fn, self._kwargs = fn, kwargs
        update_wrapper(self, fn)

    @cached_property
    def _program(self) -> Callable:
        return jax.jit(self._fn, compiler_options=compiler_options(), **self._kwargs)

    def __call__(self, *args, **kwargs):
        return self._program(*args, **kwargs)

    def __getattr__(self, name: str):
        return getattr(self._program, name)
