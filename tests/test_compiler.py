"""Options of XLA for sums over neighbours: equal numbers to rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moe_md as mm
from moe_md import compiler
from moe_md.compiler import compiler_options, fast_jit
from moe_md.simulate.advance import advance_chunk


@pytest.fixture(autouse=True)
def asked_anew():
    compiler_options.cache_clear()
    yield
    compiler_options.cache_clear()


def test_options_are_those_of_the_backend(monkeypatch):
    assert mm.compiler_options() == (compiler.ANY_ORDER if jax.default_backend() == "cpu" else None)
    compiler_options.cache_clear()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert mm.compiler_options() is None


def test_options_that_jax_does_not_know_are_left_out(monkeypatch):
    monkeypatch.setattr(compiler, "ANY_ORDER", {"xla_cpu_no_such_option": True})
    assert mm.compiler_options() is None
    assert fast_jit(lambda x: 2 * x)(1.5) == 3.0


def test_results_are_the_same_to_rounding():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((50, 300)))

    def f(x):
        return jnp.sum(jnp.exp(x) / (1 + x**2), axis=1), jnp.round(x)

    for fast, plain in zip(fast_jit(f)(x), jax.jit(f)(x)):
        np.testing.assert_allclose(fast, plain, rtol=1e-13)


def test_values_that_are_not_finite_are_seen():
    @fast_jit
    def f(x):
        return jnp.isfinite(x), jnp.isnan(jnp.sum(x)), 1.0 / x

    finite, is_nan, inverse = f(jnp.asarray([1.0, jnp.nan, jnp.inf, 0.0]))
    assert finite.tolist() == [True, False, False, True] and bool(is_nan)
    assert inverse.tolist()[2:] == [0.0, np.inf]


def test_a_program_is_a_jitted_function():
    @fast_jit
    def f(x):
        """Twice."""
        return 2 * x

    assert f(1) == 2 and f._cache_size() == 1 and f.__doc__ == "Twice."
    assert isinstance(advance_chunk, fast_jit)
