"""Benchmarks in their small form, run in this process or their own, and the records that they leave."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
from programs import ROOT, fresh_process

BENCHMARKS = ROOT / "benchmarks"
HAS_TORCH = all(importlib.util.find_spec(name) for name in ("torch", "nequip", "allegro"))
# The others run here, where jax is imported and much is compiled.
AS_PROCESS = {
    "distributed",  # sets the number of devices, before jax starts
    "soak",  # counts what its process compiles, and its memory
}


def smoke(name: str, results: Path, *arguments: str) -> dict:
    """Run a benchmark with `--smoke`; its record."""
    (record,) = smoke_all(name, results, *arguments)
    return record


def smoke_all(name: str, results: Path, *arguments: str) -> list[dict]:
    """The same where it leaves several."""
    arguments = ["--smoke", "--results", str(results), *arguments]
    if name in AS_PROCESS:
        program = [sys.executable, BENCHMARKS / f"bench_{name}.py", *arguments]
        done = subprocess.run(program, cwd=results, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    else:
        run_here(f"bench_{name}", results, *arguments)
    text = (results / f"{name}.jsonl").read_text()
    assert str(ROOT) not in text
    records = [json.loads(line) for line in text.splitlines()]
    for record in records:
        assert record["smoke"] is True and record["benchmark"] == name
        for key in ("commit", "dirty", "date", "device", "cpu", "jax", "dtype"):
            assert key in record
    return records


def run_here(name: str, folder: Path, *arguments: str) -> None:
    """Run `main` of a benchmark as its program would run, float64 off."""
    main = importlib.import_module(name).main
    with fresh_process(folder):
        main(list(arguments))
        assert not jax.config.jax_enable_x64  # a setting that it changes is its own
