"""Settings of the tests: float64, no implicit rank promotion, a compilation cache, two depths."""

import itertools
import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

import array_types

from moe_md.compilation_cache import default_folder

JAXLIB = tuple(int(number) for number in version("jaxlib").split(".")[:2])

# Set in the environment before jax is imported, so that programs started by tests have them too.
# Compilation takes most of the time of the tests. With fewer passes and without fusion emitters a mixture
# compiles in a quarter of the time (5.3 s -> 1.4 s); code generation in one part saves a tenth more.
# moe_md and its benchmarks run with the defaults of XLA.
QUICK_TO_COMPILE = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    *(("--xla_cpu_use_fusion_emitters=false",) if JAXLIB < (0, 11) else ()),  # later ones end at this flag
    "--xla_cpu_parallel_codegen_split_count=1",
)
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *QUICK_TO_COMPILE]).strip()
# In the cache folder of the user, which all clones of the repository share.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(default_folder()))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# XLA warns of a mismatch of machines for programs compiled on the same machine (jax issue 38445).
os.environ["JAX_LOGGING_LEVEL"] = "CRITICAL"
array_types.install()  # which imports jax

import jax
import pytest
from jax._src.numpy import util as jax_numpy_util

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")

collect_ignore_glob = ["conftest.py", "*/conftest.py"]  # they hold no doctests, and have one name
DURATIONS = Path(__file__).parent / "durations.json"  # seconds by test file
MAPS = Path("/proc/self/maps")  # Linux
MANY_MAPS = 45_000  # Linux allows a process 65,530


# Rank promotion --------------------------------------------------------------

# Packages that rely on rank promotion: `jax_md.space.periodic` combines positions [n, 3] and edges [3].
PROMOTES = ("jax_md", "flax", "optax", "e3nn_jax", "jraph")
_raise_on_rank_promotion = jax_numpy_util._rank_promotion_warning_or_error


def _raise_in_this_project(fun_name, shapes):
    """The check of jax, except for operations called by `PROMOTES`."""
    frame = sys._getframe(1)
    while (module := frame.f_globals.get("__name__", "")).partition(".")[0] == "jax":
        frame = frame.f_back
    if module.partition(".")[0] not in PROMOTES:
        _raise_on_rank_promotion(fun_name, shapes)


jax_numpy_util._rank_promotion_warning_or_error = _raise_in_this_project


# Memory maps -----------------------------------------------------------------


_ended = itertools.count(1)  # number of finished tests


@pytest.fixture(autouse=True)
def _forget_many_programs():
    """Clear the caches of jax when memory maps run short: without any, the compiler of XLA crashes.

    Each compiled program takes some. They are counted after every twentieth test, in milliseconds.
    """
    yield
    if next(_ended) % 20 == 0 and MAPS.exists() and MAPS.read_bytes().count(b"\n") > MANY_MAPS:
        jax.clear_caches()


# Depths and order ------------------------------------------------------------


def pytest_addoption(parser):
    parser.addoption("--record-durations", action="store_true", help=f"write {DURATIONS.name}")


def pytest_collection_modifyitems(items):
    """Run long files first, so that workers end together; skip `slow` tests unless MOE_MD_FULL is set.

    Each `slow` test has a short version that always runs.
    """
    known = json.loads(DURATIONS.read_text()) if DURATIONS.exists() else {}
    items.sort(key=lambda item: -known.get(_file(item.nodeid), 1e9))  # a new file first
    if os.environ.get("MOE_MD_FULL"):
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="long physics: set MOE_MD_FULL=1"))


def _file(nodeid: str) -> str:
    return nodeid.partition("::")[0]


_spent: dict[str, float] = {}


def pytest_runtest_logreport(report):
    _spent[_file(report.nodeid)] = _spent.get(_file(report.nodeid), 0.0) + report.duration


def pytest_sessionfinish(session):
    if session.config.getoption("--record-durations") and "PYTEST_XDIST_WORKER" not in os.environ:
        seconds = {name: round(value, 1) for name, value in sorted(_spent.items())}
        DURATIONS.write_text(json.dumps(seconds, indent=0) + "\n")


# Files ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """For commands: a Lennard-Jones checkpoint, a clean slab, and settings of two small experts."""
    from ase.build import fcc111

    from moe_md import checkpoint, experts

    species, cutoff = ("Pt", "C", "O"), 4.0
    folder = tmp_path_factory.mktemp("commands")
    built = [
        experts.lennard_jones(species, cutoff, epsilon=epsilon, sigma=2.5446, allowed_species=domain)
        for epsilon, domain in ((0.6, species), (0.59, ("Pt",)))
    ]
    params = tuple(e.init(None) for e in built)
    checkpoint.save(folder / "model.msgpack", checkpoint.Checkpoint(tuple(built), params, {}, {}))
    atoms = fcc111("Pt", (4, 4, 4), a=3.92, vacuum=6.0, orthogonal=True)
    atoms.write(folder / "slab.extxyz")
    (folder / "train.toml").write_text(
        f"""
        [expensive]
        builder = "lennard_jones"
        cutoff = {cutoff}
        epsilon = 0.5
        sigma = 1.2
        [cheap]
        builder = "lennard_jones"
        cutoff = {cutoff}
        allowed_species = ["Pt"]
        sigma = 1.2
        [training]
        steps = 4
        validate_every = 4
        [training.weights]
        energy = 1.0
        """
    )
    return folder
