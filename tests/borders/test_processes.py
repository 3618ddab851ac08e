"""Forked pools and `jax.distributed` work after moe_md was imported, and calculators were built."""

import multiprocessing
import os
import subprocess
import sys

import pytest
from programs import ROOT

PROGRAM = """
import multiprocessing, sys
import numpy as np
from ase.build import bulk
import moe_md as mm
from moe_md import analysis, checkpoint, commands, data, distributed, experts, gradients, interfaces, mixture
from moe_md import regions, reporters, settings, simulate, training
from moe_md.interfaces.ase import MixtureCalculator

calculator = MixtureCalculator("ptco-small", 1)

def energy(a):
    atoms = bulk("Pt", a=a)
    atoms.calc = calculator
    return atoms.get_potential_energy()

if sys.argv[1] == "late":
    energy(3.9)
with multiprocessing.get_context("fork").Pool(2) as pool:
    try:
        print(*pool.map_async(energy, [3.9, 4.0]).get(timeout=100))
    except RuntimeError as error:
        print(error)
"""


def answer(*arguments, program=PROGRAM) -> str:
    """What a program prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


forks = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="this system does not fork"
)


@forks
def test_a_forked_pool_computes_where_the_parent_has_only_imported_and_loaded():
    first, second = map(float, answer("early").split())
    assert first != second and abs(first - second) < 1.0


@forks
def test_a_pool_forked_after_a_calculation_is_refused():
    """It would hang: threads of jax are not copied."""
    assert "processes must be spawned after a calculator has computed" in answer("late")


def test_jax_distributed_starts_after_imports():
    program = """
import socket
import jax
import moe_md as mm
from moe_md.interfaces.ase import MixtureCalculator
mm.load("ptco-small")
with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
jax.distributed.initialize(f"localhost:{port}", num_processes=1, process_id=0)
print(jax.process_count())
"""
    assert answer(program=program) == "1\n"
