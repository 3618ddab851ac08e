"""What tests run under does what it says: ranks, depths, the folder of compiled programs."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from depths import short
from jax_md import space

import moe_md as mm
from moe_md.compilation_cache import default_folder


def test_implicit_rank_promotion_raises_here_and_not_in_jax_md():
    with pytest.raises(ValueError, match="jax_numpy_rank_promotion"):
        jnp.ones((2, 3)) + jnp.ones(3)
    _, shift_fn = space.periodic(jnp.ones(3))
    assert shift_fn(jnp.ones((2, 3)), jnp.ones((2, 3))).shape == (2, 3)


def test_further_cases_are_marked():
    cases = short(["a", "b", "c"], only=["b"])
    assert cases[1] == "b" and [case.marks[0].name for case in (cases[0], cases[2])] == ["thorough"] * 2
    assert short(["a", "b"], thorough=["b"])[0] == "a"
    with pytest.raises(ValueError, match=r"got \['d'\]"):
        short(["a"], only=["d"])


def test_compiled_programs_stay_where_jax_was_told(monkeypatch, tmp_path):
    assert mm.use_compilation_cache(tmp_path) == Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "moe_md" / f"jax-{jax.__version__}"
