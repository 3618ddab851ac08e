"""The test program's choices: float64, compiled programs kept between runs, long physics only when asked for."""

import os
from pathlib import Path

from moe_md.compilation_cache import default_folder

# In the environment, before jax is imported: so also for the programs that tests start.
# Most of the tests' time is XLA's compiling of programs that run once. Fewer passes, and fusions not by emitters:
# together a mixture compiles in a quarter of the time, 5.3 s -> 1.4. Who runs moe_md or its benchmarks has XLA's defaults.
QUICK_TO_COMPILE = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
)
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *QUICK_TO_COMPILE]).strip()
# In the user's cache folder, so that a fresh clone finds what another one compiled.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(default_folder()))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# XLA calls its own programs, kept on this very machine, a mismatch of machines (jax issue 38445).
os.environ["JAX_LOGGING_LEVEL"] = "CRITICAL"

import jax
import pytest

jax.config.update("jax_enable_x64", True)


MAPS = Path("/proc/self/maps")  # Linux
MANY_MAPS = 45_000  # of 65,530 that a process may have


@pytest.fixture(scope="module", autouse=True)
def _forget_programs():
    """Compiled programs take memory maps, of which a process has so many: XLA's compiler crashed late in a whole run."""
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def _forget_many_programs():
    """One module may have too many of them."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MANY_MAPS:
        jax.clear_caches()


def pytest_collection_modifyitems(items):
    """Tests marked `slow` have a small form beside them, which always runs."""
    if os.environ.get("MOE_MD_FULL"):
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="long physics: set MOE_MD_FULL=1"))
