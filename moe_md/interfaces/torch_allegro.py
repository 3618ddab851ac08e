"""Convert a PyTorch Allegro model to an expert with the same parameters.

    module = ...                       # nequip-allegro 0.8.3, in memory
    expert, params = from_module(module)

This module does not import torch. The architecture is read from the submodules of the
model, not from its configuration file, so models built by hand are converted too. An
option without a counterpart in `mm.experts.allegro` raises an error.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from moe_md.experts import allegro, angular
from moe_md.experts.allegro import tensor_track
from moe_md.experts.base import Expert, Params
from moe_md.experts.zbl import COULOMB

_NONLINEARITIES = {"SiLU": "silu", "Mish": "mish", "GELU": "gelu", "Tanh": "tanh"}
_PARTS = (
    *("edge_norm", "radial_chemical_embed", "scalar_embed_mlp", "tensor_embed", "allegro"),
    *("edge_readout", "edge_eng_sum", "per_type_energy_scale_shift", "total_energy_sum"),
)
_WITHOUT_EFFECT = ("cutoff",)  # submodules that are ignored: an envelope stored for a pair potential


def from_module(module: Any, species: Sequence[str] | None = None) -> tuple[Expert, Params]:
    """An expert and parameters with the energies of a PyTorch Allegro model.

    In float64, a model built with `model_dtype: float64` gives the same per-atom
    energies, forces and stress to rounding.

    Args:
        module: a model of `allegro.model.AllegroModel` or `FullAllegroModel`
            (nequip-allegro 0.8.3), or anything that contains one.
        species: chemical symbols of the model's types, in their order; by default
            its type names.

    Returns:
        The expert and its parameters, float64 numpy arrays.

    Raises:
        ValueError: the module contains no Allegro model, or one with an option
            that `mm.experts.allegro` does not have.

    Source:
        Parameter layout of nequip-allegro 0.8.3 and nequip 0.19.1.
    """
    parts = _parts(module)
    norm, embed, core = parts["edge_norm"], parts["radial_chemical_embed"], parts["allegro"]
    scale_shift = parts["per_type_energy_scale_shift"]
    type_names = tuple(scale_shift.type_names)
    species = type_names if species is None else tuple(species)
    if len(species) != len(type_names):
        raise ValueError(f"species must name the {len(type_names)} types {type_names}, got {species}.")
    encode, _ = _bessel_embedding(embed)
    l_max, parity = _irreps(core)
    mlps = {
        "scalar_embed": parts["scalar_embed_mlp"].mlp_module,
        **{f"latent_{t}": latent for t, latent in enumerate(core.latents)},
        "readout": parts["edge_readout"].mlp_module,
    }
    network = _network(parts, mlps, l_max, parity)
    reciprocal = _numpy(norm._rmax_recip)
    n = len(species)
    expert = allegro(
        species,
        float(norm.r_max),
        l_max=l_max,
        parity=parity,
        num_layers=int(core.num_layers),
        num_scalar_features=int(core.num_scalar_features),
        num_tensor_features=int(core.num_tensor_features),
        num_bessels=int(encode.num_bessels),
        polynomial_cutoff_p=float(encode.cutoff.p),
        scalar_embed_mlp=_hidden(network["scalar_embed"]),
        allegro_mlp=_hidden(network["latent_0"]),
        readout_mlp=_hidden(network["readout"]),
        avg_num_neighbors=_avg_num_neighbors(parts),
        path_channel_coupling=bool(core.tps[0].path_channel_coupling),
        nonlinearity=_nonlinearity(mlps),
        pair_cutoffs=None if reciprocal.ndim == 0 else (1.0 / reciprocal).reshape(n, n),
        zbl=_zbl(parts.get("pair_potential"), species),
    )
    params = {
        "network": network,
        "scale": _per_type(scale_shift.scales, scale_shift.has_scales, 1.0, n),
        "shift": _per_type(scale_shift.shifts, scale_shift.has_shifts, 0.0, n),
    }
    return expert, params


def _network(parts: dict[str, Any], mlps: dict[str, Any], l_max: int, parity: bool) -> dict[str, Any]:
    """The parameters of the Allegro network, named as `mm.experts.allegro` names them."""
    core, tensor_embed = parts["allegro"], parts["tensor_embed"]
    if not (
        core._env_weighter.weight_individual_irreps and tensor_embed._edge_weighter.weight_individual_irreps
    ):
        raise ValueError("weight_individual_irreps must be True, got False.")
    _, types = _bessel_embedding(parts["radial_chemical_embed"])
    linear = {
        "basis_linear": types.basis_linear,
        "tensor_embed": tensor_embed.env_embed_linear,
        "first_projection": core.first_layer_env_embed_projection,
    }
    network: dict[str, Any] = {
        "center_embed": _numpy(types.center_embed.weight),
        "neighbor_embed": _numpy(types.neighbor_embed.weight),
        **{name: _layers(name, mlp) for name, mlp in {**linear, **mlps}.items()},
    }
    track = tensor_track(l_max, int(core.num_layers), parity)
    for t, product in enumerate(core.tps):
        network[f"tensor_product_{t}"] = {"path_weights": _path_weights(product, track, t, l_max)}
    return network


def _parts(module: Any) -> dict[str, Any]:
    """The named submodules of the first sequence of submodules that contains an Allegro core."""
    for part in module.modules():
        steps = dict(part.named_children())
        if type(steps.get("allegro")).__name__ == "Allegro_Module":
            break
    else:
        raise ValueError(f"module must contain an Allegro model, got {type(module).__name__}.")
    missing = [name for name in _PARTS if name not in steps]
    unknown = sorted(set(steps) - {*_PARTS, *_WITHOUT_EFFECT, "pair_potential"})
    if missing or unknown:
        raise ValueError(f"module must have the parts {_PARTS}; missing {missing}, unknown {unknown}.")
    return steps


def _bessel_embedding(embed: Any) -> tuple[Any, Any]:
    """The submodules `bessel_encode` and `type_embed`; `ValueError` for another embedding."""
    steps = dict(embed.named_children())
    if set(steps) != {"bessel_encode", "type_embed"}:
        raise ValueError(
            f"radial_chemical_embed must be TwoBodyBesselScalarEmbed, got {type(embed).__name__}."
        )
    encode = steps["bessel_encode"]
    roots = _numpy(encode.bessel_weights).reshape(-1)
    if not np.allclose(roots, np.arange(1, len(roots) + 1), rtol=0.0, atol=1e-7):
        raise ValueError(f"Bessel roots must be 1 to {len(roots)} (untrained), got {roots}.")
    return encode, steps["type_embed"]


def _irreps(core: Any) -> tuple[int, bool]:
    """`l_max` and `parity`, from the spherical harmonics and the allowed irreps of the tensor track."""
    harmonics = [(int(ir.l), int(ir.p)) for _, ir in core.tps[0].irreps_in2]
    l_max = len(harmonics) - 1
    allowed = {(int(ir.l), int(ir.p)) for _, ir in core.tensor_track_allowed_irreps}
    if tuple(harmonics) != angular.harmonic_irreps(l_max):
        raise ValueError(
            f"irreps_edge_sh must be all harmonics up to some l_max, got {core.tps[0].irreps_in2}."
        )
    if allowed == set(harmonics):
        return l_max, False
    if allowed == {(l, p) for l in range(l_max + 1) for p in (1, -1)}:
        return l_max, True
    raise ValueError(
        f"tensor_track_allowed_irreps must be the harmonics, or all irreps up to l = {l_max}, "
        f"got {core.tensor_track_allowed_irreps}."
    )


def _layers(name: str, mlp: Any) -> dict[str, np.ndarray]:
    """Kernels of a scalar network, rescaled to this package's normalisation."""
    found = [layer for layer in mlp.mlp if hasattr(layer, "alpha")] if hasattr(mlp.mlp, "__iter__") else []
    if not found:
        raise ValueError(f"{name} must have a nonlinearity between its layers, got a linear network.")
    kernels = {}
    for k, layer in enumerate(found):
        kernel, alpha = _numpy(layer.weight), float(layer.alpha)
        if layer.bias is not None:
            raise ValueError(f"{name} must have no bias, got one in layer {k}.")
        ours = (1.0 if k == 0 else 2.0**0.5) / kernel.shape[0] ** 0.5
        # Another scaling (forward_normalize: false) is multiplied into the kernel.
        kernels[f"weight_{k}"] = kernel * (alpha / ours) if abs(alpha / ours - 1.0) > 1e-6 else kernel
    return kernels


def _hidden(layers: dict[str, np.ndarray]) -> tuple[int, ...]:
    """Widths of the hidden layers."""
    return tuple(layers[f"weight_{k}"].shape[1] for k in range(len(layers) - 1))


def _nonlinearity(mlps: dict[str, Any]) -> str:
    """The name of the nonlinearity, which all networks must share."""
    kinds = {
        type(layer).__name__ for mlp in mlps.values() for layer in mlp.mlp if not hasattr(layer, "alpha")
    }
    if not kinds:
        return "silu"  # no network has a hidden layer
    if len(kinds) > 1 or not kinds <= set(_NONLINEARITIES):
        raise ValueError(
            f"nonlinearities must be one of {sorted(_NONLINEARITIES)} throughout, got {sorted(kinds)}."
        )
    return _NONLINEARITIES[kinds.pop()]


def _path_weights(product: Any, track: list, t: int, l_max: int) -> np.ndarray:
    """`[n_paths, channels or 1]` coefficients of paths.

    Each has the sign by which the Wigner symbols of the two libraries differ.
    """
    coupling = angular.coupling_tensor(track[t], angular.harmonic_irreps(l_max), track[t + 1])
    paths = len(coupling)
    theirs = _numpy(product.w3j)
    if product.w3j_is_ij_diagonal:  # stored without the second index
        diagonal = np.zeros((paths, *coupling.shape[1:]))
        i = np.arange(coupling.shape[1])
        diagonal[:, i, i] = theirs.reshape(paths, coupling.shape[1], coupling.shape[3])
        theirs = diagonal
    if theirs.size != coupling.size:
        raise ValueError(
            f"tensor product {t} must have the {paths} paths of its irreps, got {product.num_paths}."
        )
    theirs = theirs.reshape(coupling.shape)
    sign = np.sign(np.sum(theirs * coupling, axis=(1, 2, 3)))
    if not np.allclose(theirs, sign[:, None, None, None] * coupling, atol=1e-6):
        raise ValueError(f"tensor product {t} must use Wigner 3j symbols in the 'component' normalisation.")
    weights = _numpy(product.weights)
    weights = weights.reshape(-1, paths).T if product.path_channel_coupling else weights.reshape(paths, 1)
    return weights * sign[:, None]


def _avg_num_neighbors(parts: dict[str, Any]) -> float | tuple[float, ...]:
    """Average numbers of neighbours, one or one per type, from the normalisation constants."""
    constants = [
        _numpy(p.norm_const).reshape(-1)
        for p in (parts["allegro"].avg_num_neighbors_norm, parts["edge_eng_sum"].norm_module)
    ]
    if not np.array_equal(constants[0], constants[1]):
        raise ValueError(f"avg_num_neighbors must be the same throughout, got norms {constants}.")
    numbers = constants[0] ** -2.0
    return float(numbers[0]) if len(numbers) == 1 else tuple(numbers.tolist())


def _zbl(pair_potential: Any, species: tuple[str, ...]) -> bool:
    """Whether the model has a ZBL pair potential; `ValueError` for any other pair potential."""
    if pair_potential is None:
        return False
    kind = type(pair_potential).__name__
    if kind != "ZBL":
        raise ValueError(f"pair_potential must be ZBL or none, got {kind}.")
    power, unit = float(pair_potential.cutoff.p), float(pair_potential._qqr2exesquare)
    symbols = tuple(chemical_symbols[int(z)] for z in _numpy(pair_potential.atomic_numbers))
    if power != 6.0 or abs(unit - COULOMB / 2) > 1e-9 or symbols != species:
        raise ValueError(
            f"ZBL must have polynomial_cutoff_p = 6, metal units and chemical_species = {species}, "
            f"got {power:g}, a prefactor of {unit:g} and {symbols}."
        )
    return True


def _per_type(values: Any, present: bool, default: float, n_types: int) -> np.ndarray:
    """`[n_types]`: the model's values, or the default where it has none."""
    if not present:
        return np.full(n_types, default)
    return np.broadcast_to(_numpy(values).reshape(-1), n_types).copy()


def _numpy(tensor: Any) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()
