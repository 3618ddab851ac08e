"""PyTorch Allegro (nequip-allegro) on the batches of moe_md: model, loss and training.

It has the architecture of an Allegro expert, and is trained with the same loss, learning
rate and schedule as co-training, by Adam.
"""

import importlib.util
import math
import time
from collections.abc import Callable, Iterator

import harness
import jax
import numpy as np

from moe_md.data import Batch
from moe_md.experts import Expert
from moe_md.settings import TrainSettings

PEER = "nequip-allegro"
HAS_PEER = all(importlib.util.find_spec(name) for name in ("torch", "nequip", "allegro"))


def torch_allegro(expert: Expert, scale: float, references: dict, seed: int, *, compile_mode: str = "eager"):
    """PyTorch Allegro with an expert's architecture, in float32; `compile_mode` is nequip's.

    Raises:
        ValueError: the parameters have other shapes than the expert's.
    """
    import torch
    from allegro.model import AllegroModel
    from nequip.utils.global_state import global_state_initialized, set_global_state

    from moe_md.interfaces.torch_allegro import from_module

    if not global_state_initialized():
        set_global_state()
    c = expert.config
    widths = {}
    for mlp in ("scalar_embed_mlp", "allegro_mlp", "readout_mlp"):
        widths |= {f"{mlp}_hidden_layers_width": c[mlp][0], f"{mlp}_hidden_layers_depth": len(c[mlp])}
    same = (
        "l_max",
        "parity",
        "num_layers",
        "num_scalar_features",
        "num_tensor_features",
        "avg_num_neighbors",
    )
    model = AllegroModel(
        seed=seed,
        compile_mode=compile_mode,
        model_dtype="float32",
        type_names=list(c["species"]),
        r_max=c["cutoff"],
        radial_chemical_embed={
            "_target_": "allegro.nn.TwoBodyBesselScalarEmbed",
            "num_bessels": c["num_bessels"],
        },
        per_type_energy_scales=scale,
        per_type_energy_shifts=references,
        **{name: c[name] for name in same},
        **widths,
    )
    ours, theirs = expert.init(jax.random.key(0)), from_module(model)[1]
    if jax.tree.map(np.shape, ours) != jax.tree.map(np.shape, theirs):
        raise ValueError("the peer must have the expert's architecture, got parameters of other shapes.")
    torch.set_num_threads(harness.environment()["cores"])
    return model


def torch_input(batch: Batch) -> dict:
    """The frames of a batch as graphs of nequip.

    All atoms are at the origin of a unit cube, and displacements are shifts of that cell.
    """
    import torch

    center, slot = np.nonzero(batch.rows.mask)
    n, n_atoms = (
        int(batch.row_mask.sum()),
        batch.n_atoms[batch.n_atoms > 0],
    )  # padded rows and frames are the last ones
    return {
        "pos": torch.zeros(n, 3, dtype=torch.float64),  # float64 in nequip, for any dtype of the model
        "cell": torch.eye(3, dtype=torch.float64).repeat(len(n_atoms), 1, 1),
        "batch": torch.from_numpy(batch.frame[:n].astype(np.int64)),
        "num_atoms": torch.from_numpy(n_atoms.astype(np.int64)),
        "atom_types": torch.from_numpy(batch.rows.center_species[:n].astype(np.int64)),
        "edge_index": torch.from_numpy(
            np.stack([center, batch.rows.neighbor[center, slot]]).astype(np.int64)
        ),
        "edge_cell_shift": torch.from_numpy(batch.rows.displacement[center, slot].astype(np.float64)),
    }


def torch_predict(model, batch: Batch) -> tuple:
    """Energy of each frame and forces of each row that is not padded, as tensors."""
    import torch

    out = model(torch_input(batch))
    atom_energies = out["atomic_energy"][:, 0]
    frame = torch.from_numpy(batch.frame[: len(atom_energies)].astype(np.int64))
    energy = torch.zeros(len(batch.n_atoms), dtype=atom_energies.dtype).index_add(0, frame, atom_energies)
    return energy, out["forces"]


def torch_loss(model, batch: Batch, weights):
    """The data term of moe_md's loss for one expert."""
    import torch

    energy, forces = torch_predict(model, batch)
    real = torch.from_numpy(batch.n_atoms > 0)
    per_atom = (energy - torch.from_numpy(batch.energy))[real] / torch.from_numpy(batch.n_atoms)[real]
    force_error = forces - torch.from_numpy(batch.forces[: len(forces)])
    return weights.energy * (per_atom**2).mean() + weights.forces * (force_error**2).mean()


def train_peer(model, stream: Iterator[Batch], settings: TrainSettings, seconds: float) -> dict:
    """Train for a number of seconds of processor time; the model ends with averaged parameters.

    Args:
        model: from `torch_allegro`.
        stream: batches, those of co-training.
        settings: those of co-training.
        seconds: processor time.

    Returns:
        `steps`, `frames_seen` and `cpu_s`.
    """
    import torch

    parameters = [p for p in model.parameters() if p.requires_grad]
    average = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.Adam(parameters, lr=settings.learning_rate)
    model.train()
    step = frames = 0
    started = time.process_time()
    while (spent := time.process_time() - started) < seconds:
        batch = next(stream)
        optimizer.param_groups[0]["lr"] = learning_rate(settings, step, spent / seconds)
        optimizer.zero_grad()
        loss = torch_loss(model, batch, settings.weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
        optimizer.step()
        decay = min(settings.ema_decay, (1.0 + step) / (10.0 + step))
        for mean, p in zip(average, parameters):
            mean.lerp_(p.detach(), 1.0 - decay)
        step, frames = step + 1, frames + int(np.sum(batch.n_atoms > 0))
        if step % 200 == 0:
            print(f"peer: step {step}, {spent:.0f} of {seconds:.0f} s, loss {loss.item():.4f}", flush=True)
    for mean, p in zip(average, parameters):
        p.data.copy_(mean)
    return {"steps": step, "frames_seen": frames, "cpu_s": time.process_time() - started}


def learning_rate(settings: TrainSettings, step: int, share: float) -> float:
    """Warm-up over steps, then the cosine of co-training over the share of the budget spent."""
    warmup = min(1.0, step / max(min(settings.warmup_steps, settings.steps // 2), 1))
    low = settings.final_learning_rate
    return (
        settings.learning_rate
        * warmup
        * (low + (1.0 - low) * 0.5 * (1.0 + math.cos(math.pi * min(share, 1.0))))
    )


def peer_predictions(model) -> Callable[[Batch], dict]:
    """Function of a batch: energy and forces of the peer."""
    model.eval()

    def on_batch(batch: Batch) -> dict:
        energy, forces = torch_predict(model, batch)
        return {"peer": (energy.detach().numpy(), forces.detach().numpy())}

    return on_batch
