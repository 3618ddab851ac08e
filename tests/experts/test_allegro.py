"""Allegro's fast path against the same mathematics, edge by edge in numpy."""

import e3nn_jax as e3nn
import jax
import numpy as np
import pytest
from contract import ATOMS, CUTOFF, POSITION, close, cluster_rows, randomized, small_allegro
from depths import short

from moe_md.experts.allegro import tensor_track


def mlp(weights, x):
    """Layers of unit-variance weights, SiLU between them."""
    for layer in range(len(weights)):
        w = weights[f"weight_{layer}"]
        if layer:
            x = x / (1.0 + np.exp(-x)) * np.sqrt(2.0)
        x = x @ w / np.sqrt(len(w))
    return x


def harmonics(l, r):
    x, y, z = r / np.linalg.norm(r)
    return (
        np.array([1.0]),
        np.sqrt(3) * np.array([x, y, z]),
        np.sqrt(15)
        * np.array([x * z, x * y, (2 * y**2 - x**2 - z**2) / np.sqrt(12), y * z, (z**2 - x**2) / 2]),
    )[l]


def tensor_product(weights, left, right, outputs):
    """Every path of one edge, channel by channel: `{irrep: [channels, 2l + 1]}`."""
    out, path = {}, 0
    for o in outputs:
        for a in left:
            for b in right:
                if a[1] * b[1] != o[1] or not abs(a[0] - b[0]) <= o[0] <= a[0] + b[0]:
                    continue
                # e3nn's coefficients: sum of squares 1 after division by the norm.
                w = np.asarray(e3nn.clebsch_gordan(a[0], b[0], o[0]))
                w = w * np.sqrt((2 * o[0] + 1) / np.sum(w**2))
                for c in range(len(left[a])):
                    strength = weights[path, c % weights.shape[1]]
                    value = strength * np.einsum("i,j,ijo->o", left[a][c], right[b][c], w)
                    out.setdefault(o, np.zeros((len(left[a]), 2 * o[0] + 1)))[c] += value
                path += 1
    assert path == len(weights)
    return out


def reference(config, params, position, species):
    """Energies by loops over edges; the environment meets each edge on its own."""
    net, n = params["network"], len(position)
    l_max, layers, S, C = (
        config[k] for k in ("l_max", "num_layers", "num_scalar_features", "num_tensor_features")
    )
    average, p = config["avg_num_neighbors"], config["polynomial_cutoff_p"]
    track = tensor_track(l_max, layers, config["parity"])
    orders = range(l_max + 1)
    natural = [(l, (-1) ** l) for l in orders]
    edges = [
        (i, j, position[j] - position[i])
        for i in range(n)
        for j in range(n)
        if i != j and np.linalg.norm(position[j] - position[i]) < config["cutoff"]
    ]

    def by_order(flat):  # channel-major: channel c's weight of order l is entry c (l_max + 1) + l
        return {l: np.array([flat[c * (l_max + 1) + l] for c in range(C)]) for l in orders}

    Y = [{k: harmonics(k[0], r) for k in natural} for _, _, r in edges]
    features, weights, tensors = [], [], []
    for e, (i, j, r) in enumerate(edges):
        x = np.linalg.norm(r) / config["cutoff"]
        u = 1 - (p + 1) * (p + 2) / 2 * x**p + p * (p + 2) * x ** (p + 1) - p * (p + 1) / 2 * x ** (p + 2)
        basis = [u * np.sin(k * np.pi * x) / (np.pi * x) for k in range(1, config["num_bessels"] + 1)]
        types = np.concatenate([net["center_embed"][species[i]], net["neighbor_embed"][species[j]]])
        scalar = mlp(net["scalar_embed"], types * mlp(net["basis_linear"], np.array(basis)))
        embedded = by_order(mlp(net["tensor_embed"], scalar))
        tensors.append({k: np.outer(embedded[k[0]], Y[e][k]) for k in natural})
        first = mlp(net["first_projection"], scalar)
        features.append([first[:S]])
        weights.append(by_order(first[S:]))
    for layer in range(layers):
        product = []
        for e, (i, _, _) in enumerate(edges):
            environment = {
                k: sum(np.outer(weights[f][k[0]], Y[f][k]) for f in range(len(edges)) if edges[f][0] == i)
                / np.sqrt(average)
                for k in natural
            }
            left = {k: tensors[e][k] for k in track[layer]}
            product.append(
                tensor_product(
                    net[f"tensor_product_{layer}"]["path_weights"], left, environment, track[layer + 1]
                )
            )
        tensors = product
        for e in range(len(edges)):
            latent = mlp(net[f"latent_{layer}"], np.concatenate([*features[e], tensors[e][0, 1][:, 0]]))
            features[e].append(latent[:S])
            if layer < layers - 1:
                weights[e] = by_order(latent[S:])
    energies = np.zeros(n)
    for e, (i, _, _) in enumerate(edges):
        energies[i] += mlp(net["readout"], np.concatenate(features[e]))[0] / np.sqrt(2 * average)
    return params["scale"][species] * energies + params["shift"][species]


@pytest.mark.parametrize(
    "size",
    short(
        [(1, 1, True), (1, 2, False), (1, 3, True), (2, 1, False), (2, 2, True), (2, 3, True), (2, 3, False)],
        only=[(1, 2, False), (2, 2, True)],
    ),
    ids=str,
)
def test_fast_path_is_the_edgewise_product(size):
    l_max, num_layers, parity = size
    compare(small_allegro(l_max, num_layers, parity))


@pytest.mark.thorough
def test_one_weight_per_path():
    compare(small_allegro(2, 2, True, path_channel_coupling=False))


def test_scalars_alone():
    compare(small_allegro(0, 2, True))


def compare(expert):
    params = randomized(expert, seed=3)
    expected = reference(expert.config, params, POSITION, ATOMS)
    found = jax.jit(expert.atom_energies)(params, cluster_rows(POSITION, ATOMS, extra_slots=1))
    assert np.ptp(expected) > 0.1
    close(found, expected, 1e-10)


EVEN, ODD, VECTOR, AXIAL, TWO, PSEUDO_TWO = (0, 1), (0, -1), (1, -1), (1, 1), (2, 1), (2, -1)


@pytest.mark.parametrize(
    "l_max, num_layers, parity, expected",
    [
        (0, 1, True, [(EVEN,), (EVEN,)]),
        (1, 1, True, [(EVEN, VECTOR), (EVEN,)]),
        # Only natural parity reaches a scalar in one more product.
        (1, 2, True, [(EVEN, VECTOR), (EVEN, VECTOR), (EVEN,)]),
        (2, 2, True, [(EVEN, VECTOR, TWO), (EVEN, VECTOR, TWO), (EVEN,)]),
        # 1e = 1o x 1o has time to come back; 0o cannot be made of harmonics in one product.
        (1, 3, True, [(EVEN, VECTOR), (EVEN, AXIAL, VECTOR), (EVEN, VECTOR), (EVEN,)]),
        (1, 3, False, [(EVEN, VECTOR), (EVEN, VECTOR), (EVEN, VECTOR), (EVEN,)]),
        (
            2,
            3,
            True,
            [
                (EVEN, VECTOR, TWO),
                (EVEN, AXIAL, VECTOR, TWO, PSEUDO_TWO),
                (EVEN, VECTOR, TWO),
                (EVEN,),
            ],
        ),
        # 0o = 1e x 1o, and 0o x 1o = 1e, which needs two more products to become a scalar.
        (
            1,
            5,
            True,
            [
                (EVEN, VECTOR),
                (EVEN, AXIAL, VECTOR),
                (EVEN, ODD, AXIAL, VECTOR),
                (EVEN, AXIAL, VECTOR),
                (EVEN, VECTOR),
                (EVEN,),
            ],
        ),
    ],
)
def test_track_is_pruned(l_max, num_layers, parity, expected):
    assert tensor_track(l_max, num_layers, parity) == expected


def test_cutoff_of_the_test_cluster_leaves_edges_out():
    distance = np.linalg.norm(POSITION[:, None] - POSITION, axis=-1)
    assert 0 < np.sum(distance > CUTOFF) < distance.size / 2


def test_shapes_of_parameters():
    """What a converter of reference weights relies on."""
    params = small_allegro(2, 2, True).init(jax.random.key(0))
    shapes = jax.tree.map(np.shape, params)
    assert shapes == {
        "network": {
            "center_embed": (2, 3),
            "neighbor_embed": (2, 3),
            "basis_linear": {"weight_0": (4, 6)},
            "scalar_embed": {"weight_0": (6, 5), "weight_1": (5, 6)},
            "tensor_embed": {"weight_0": (6, 9)},
            "first_projection": {"weight_0": (6, 15)},
            "tensor_product_0": {"path_weights": (11, 3)},
            "latent_0": {"weight_0": (9, 5), "weight_1": (5, 15)},
            "tensor_product_1": {"path_weights": (3, 3)},
            "latent_1": {"weight_0": (15, 5), "weight_1": (5, 6)},
            "readout": {"weight_0": (18, 4), "weight_1": (4, 1)},
        },
        "scale": (2,),
        "shift": (2,),
    }
