"""Allegro in PyTorch, for `bench_peers.py`: eager, TorchScript, `torch.compile` and AOTInductor."""

import os
from collections.abc import Callable

import numpy as np
from peers_problem import Built, Problem, allegro_config


def torch_model(problem: Problem):
    """The model and its input; its parameters are written to the folder, for moe_md."""
    os.environ["NEQUIP_SKIP_AOTI_MODEL_CHECK"] = "1"  # `bench_peers.compare` checks forces
    import torch
    from bench_public_dft import torch_allegro
    from nequip.data import compute_neighborlist_, from_dict

    import moe_md as mm
    from moe_md import checkpoint
    from moe_md.interfaces.torch_allegro import from_module

    config = allegro_config(problem.tiny)
    model = torch_allegro(mm.experts.build(config), 1.0, dict.fromkeys(config["species"], 0.0), seed=0).eval()
    weights = problem.folder / "allegro.msgpack"
    if not weights.exists():
        expert, params = from_module(model)
        mm.save(weights, checkpoint.Checkpoint((expert,), (params,), {}, {}))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    n_atoms = len(problem.position)
    data = {
        "pos": torch.from_numpy(problem.position.astype(float)),
        "cell": torch.from_numpy(np.diag(problem.edges.astype(float))),
        "pbc": torch.ones(3, dtype=torch.bool),
        "atom_types": torch.full((n_atoms,), config["species"].index("Pt")),
    }
    data = compute_neighborlist_(from_dict(data), r_max=config["cutoff"], backend="matscipy")
    return model, {key: data[key] for key in TORCH_INPUTS}


TORCH_INPUTS = ["pos", "edge_index", "atom_types", "cell", "edge_cell_shift"]
TORCH_OUTPUTS = ["total_energy", "forces"]


def torch_case(model, data: dict) -> Built:
    """A case of a module whose input and output are dictionaries."""
    return Built(
        lambda: model(dict(data)),
        lambda out: (out["total_energy"].item(), out["forces"].detach().numpy()),
        int(data["edge_index"].shape[1]),
    )


def torch_eager(problem: Problem) -> Built:
    return torch_case(*torch_model(problem))


def torch_script(problem: Problem) -> Built:
    """TorchScript as in nequip, which no longer offers it for this PyTorch."""
    import torch
    from e3nn.util.jit import script

    model, data = torch_model(problem)
    built = torch_case(torch.jit.freeze(script(model)), data)
    for _ in range(2):  # the profiler specialises the program in the first calls
        built.evaluate()
    return built


COMPILED: dict[str, Callable] = {}  # compiled programs, for any number of atoms and edges


def inductor_settings() -> None:
    """Limit Inductor to vectors of 256 bits, with which it is faster.

    With 16 lanes Inductor counts no steps in a loop over 9 components, opens a parallel region in each pass
    of the loops around it (`LoopNest.max_parallel_depth`) and is slower than eager.
    """
    import torch._inductor.config

    torch._inductor.config.cpp.simdlen = 256


def torch_compiled(problem: Problem) -> Built:
    """`torch.compile` of the traced forward and backward passes, as nequip compiles models for training."""
    import torch
    from nequip.nn.compile import DictInputOutputWrapper, ListInputOutputWrapper
    from nequip.utils.fx import nequip_make_fx

    model, data = torch_model(problem)
    if "compile" not in COMPILED:
        inductor_settings()
        traced = nequip_make_fx(
            ListInputOutputWrapper(model, TORCH_INPUTS, TORCH_OUTPUTS), data, TORCH_INPUTS
        )
        COMPILED["compile"] = torch.compile(traced, dynamic=True)
    call = COMPILED["compile"]
    return torch_case(DictInputOutputWrapper(lambda inputs: call(*inputs), TORCH_INPUTS, TORCH_OUTPUTS), data)


def torch_aot_inductor(problem: Problem) -> Built:
    """The program that `nequip-compile --mode aotinductor` makes for dynamics."""
    import torch
    from nequip.nn.compile import DictInputOutputWrapper
    from nequip.utils.aot import aot_export_model

    model, data = torch_model(problem)
    if "aot" not in COMPILED:
        inductor_settings()
        many = {
            name: torch.export.dynamic_shapes.Dim(f"num_{name}s", min=2, max=torch.inf)
            for name in ("node", "edge")
        }
        path = str(problem.folder / "allegro.nequip.pt2")
        aot_export_model(
            model, "cpu", TORCH_INPUTS, TORCH_OUTPUTS, data, {"graph": torch.export.Dim.STATIC, **many}, path
        )
        COMPILED["aot"] = torch._inductor.aoti_load_package(path)
    return torch_case(DictInputOutputWrapper(COMPILED["aot"], TORCH_INPUTS, TORCH_OUTPUTS), data)
