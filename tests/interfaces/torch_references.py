"""Reference values from PyTorch Allegro, for `test_torch_allegro.py`.

    pip install torch==2.13.0 nequip==0.19.1 nequip-allegro==0.8.3
    python tests/interfaces/torch_references.py     writes torch_references.npz

Each case is a small random model in float64, a structure, and the reference's per-atom
energies, forces and stress. The model's parameters are stored as `from_module` reads
them.
"""

import json
from pathlib import Path

import ase
import jax
import numpy as np
from ase.build import bulk, molecule

FILE = Path(__file__).with_name("torch_references.npz")
COMMON = {
    "r_max": 4.0,
    "radial_chemical_embed": {"_target_": "allegro.nn.TwoBodyBesselScalarEmbed", "num_bessels": 5},
    "num_scalar_features": 6,
    "num_tensor_features": 3,
    "scalar_embed_mlp_hidden_layers_width": 7,
    "allegro_mlp_hidden_layers_width": 5,
    "readout_mlp_hidden_layers_width": 4,
    "avg_num_neighbors": 11.0,
}
ZBL = {"_target_": "nequip.nn.pair_potential.ZBL", "units": "metal"}


def structures() -> dict[str, ase.Atoms]:
    """A one-atom cell, a skewed alloy cell smaller than the cutoff, a molecule on a slab that is not
    periodic along z, and a free molecule.
    """
    rng = np.random.default_rng(0)
    one = bulk("Pt", "fcc", a=3.9)
    alloy = bulk("Pt", "fcc", a=3.8, cubic=True)
    alloy.symbols[1] = "C"
    alloy.set_cell(alloy.cell.array @ (np.eye(3) + 0.05 * rng.normal(size=(3, 3))), scale_atoms=True)
    slab = bulk("Pt", "fcc", a=3.9, cubic=True)
    slab += ase.Atoms("CO", [[0.1, 0.2, 4.0], [0.3, 0.1, 5.15]])
    slab.cell[2, 2], slab.pbc = 14.0, (True, True, False)
    free = molecule("CH3CH2OH")
    free.symbols[[a.index for a in free if a.symbol == "H"]] = "Pt"
    for atoms in (alloy, slab, free):
        atoms.positions += rng.normal(size=atoms.positions.shape) * 0.08
    return {"one": one, "alloy": alloy, "slab": slab, "molecule": free}


def cases() -> dict[str, tuple[dict, str]]:
    """Keyword arguments of the reference's model, and the name of a structure."""
    found = {}
    all_three = ["Pt", "C", "O"]
    for l_max in (1, 2, 3):
        for layers in (1, 2, 3):
            for parity in (True, False):
                structure = "slab" if (l_max + layers + parity) % 2 else "molecule"
                options = {"l_max": l_max, "num_layers": layers, "parity": parity, "type_names": all_three}
                found[f"l{l_max}-layers{layers}-{'full' if parity else 'natural'}"] = options, structure
    base = {"l_max": 2, "num_layers": 2, "parity": True}
    scales = {
        "per_type_energy_scales": {"Pt": 2.0, "C": 0.5, "O": 1.5},
        "per_type_energy_shifts": {"Pt": -3.0, "C": 1.0, "O": 0.2},
    }
    cutoffs = {"per_edge_type_cutoff": {"Pt": {"C": 3.0, "O": 2.5}, "C": 2.8}}
    zbl = {"pair_potential": {**ZBL, "chemical_species": all_three}}
    per_type = {"avg_num_neighbors": {"Pt": 12.0, "C": 3.0, "O": 2.0}}
    found["one-species"] = (
        {**base, "type_names": ["Pt"], "per_type_energy_scales": 1.7, "per_type_energy_shifts": -2.0},
        "one",
    )
    found["two-species"] = {**base, "type_names": ["C", "Pt"]}, "alloy"
    found["scale-shift"] = {**base, "type_names": all_three, **scales}, "slab"
    found["pair-cutoffs"] = {**base, "type_names": all_three, **cutoffs}, "slab"
    found["zbl"] = {**base, "type_names": all_three, **zbl}, "molecule"
    found["zbl-pair-cutoffs"] = {**base, "type_names": all_three, **zbl, **cutoffs, **scales}, "alloy"
    found["neighbors-per-type"] = {**base, "type_names": all_three, **per_type}, "slab"
    found["path-weights"] = {**base, "type_names": all_three, "tp_path_channel_coupling": False}, "molecule"
    found["backward-init"] = {**base, "type_names": all_three, "forward_normalize": False}, "slab"
    for name in ("mish", "gelu"):
        every = {f"{part}_nonlinearity": name for part in ("scalar_embed_mlp", "allegro_mlp", "readout_mlp")}
        found[name] = {**base, "type_names": all_three, **every}, "slab"
    deep = {
        f"{part}_hidden_layers_depth": depth
        for part, depth in (("scalar_embed_mlp", 2), ("allegro_mlp", 3), ("readout_mlp", 0))
    }
    found["depths"] = {**base, "type_names": all_three, **deep}, "molecule"
    return found


def build(options: dict, seed: int = 0):
    """The reference's model, float64, with random parameters."""
    from allegro.model import AllegroModel
    from nequip.utils.global_state import global_state_initialized, set_global_state

    if not global_state_initialized():
        set_global_state()
    return AllegroModel(seed=seed, model_dtype="float64", **{**COMMON, **options})


def evaluate(model, atoms: ase.Atoms, type_names: list[str]) -> dict[str, np.ndarray]:
    """Per-atom energies (eV), forces (eV/Å) and, where fully periodic, stress (eV/Å^3) by the reference."""
    import torch
    from nequip.data import AtomicDataDict, compute_neighborlist_, from_dict

    data = {
        "pos": torch.tensor(atoms.positions),
        "atom_types": torch.tensor([type_names.index(s) for s in atoms.symbols]),
    }
    if atoms.pbc.any():
        data |= {"cell": torch.tensor(atoms.cell.array), "pbc": torch.tensor(atoms.pbc)}
    data = compute_neighborlist_(from_dict(data), r_max=float(model.metadata["r_max"]), backend="ase")
    out = model(data)
    found = {
        "energies": out[AtomicDataDict.PER_ATOM_ENERGY_KEY].detach().numpy()[:, 0],
        "forces": out[AtomicDataDict.FORCE_KEY].detach().numpy(),
    }
    if atoms.pbc.all():
        found["stress"] = out[AtomicDataDict.STRESS_KEY].detach().numpy().reshape(3, 3)
    return found


def main() -> None:
    from moe_md.interfaces.torch_allegro import from_module

    stored = {}
    for seed, (name, (options, structure)) in enumerate(cases().items()):
        model = build(options, seed)
        expert, params = from_module(model)
        stored[f"{name}/config"] = np.array(json.dumps(expert.config))
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            stored[f"{name}/params/" + "/".join(key.key for key in path)] = leaf
        for key, value in evaluate(model, structures()[structure], options["type_names"]).items():
            stored[f"{name}/{key}"] = value
    np.savez_compressed(FILE, **stored)
    print(f"{len(cases())} cases, {FILE.stat().st_size / 1024:.0f} kB")


if __name__ == "__main__":
    main()
