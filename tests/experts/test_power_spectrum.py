"""The power spectrum against an explicit sum over pairs of neighbours."""

import jax
import numpy as np
import pytest
from contract import ATOMS, POSITION, SPECIES, close, cluster_rows, randomized, small_power_spectrum
from numpy.polynomial.legendre import legval

from moe_md.experts import power_spectrum


def radial(config, r):
    x, p = r / config["cutoff"], config["polynomial_cutoff_p"]
    u = 1 - (p + 1) * (p + 2) / 2 * x**p + p * (p + 2) * x ** (p + 1) - p * (p + 1) / 2 * x ** (p + 2)
    return np.array([u * np.sin(k * np.pi * x) / (np.pi * x) for k in range(1, config["num_bessels"] + 1)])


def network(net, x, widths):
    for layer in range(widths):
        gain = 1.0 if layer == 0 else np.sqrt(2.0)
        x = gain * x @ net[f"weight_{layer}"] / np.sqrt(len(x)) + 0.3 * net[f"bias_{layer}"]
        x = x / (1.0 + np.exp(-x))
    return x @ net["readout"] / np.sqrt(len(x))


def reference(config, params, position, species):
    """Loops over triples: the harmonics of two neighbours enter by the angle between them."""
    net, n = params["network"], len(position)
    domain = [SPECIES.index(s) for s in config["allowed_species"]]
    l_max, C, B, average = (config[k] for k in ("l_max", "num_channels", "num_bessels", "avg_num_neighbors"))
    Q = len(domain) * B
    energies = np.zeros(n)
    for i in range(n):
        c = domain.index(species[i])
        seen = []  # (unit vector, radial functions in the block of the neighbour's species)
        for j in range(n):
            r = position[j] - position[i]
            d = np.linalg.norm(r)
            if i == j or d >= config["cutoff"] or species[j] not in domain:
                continue
            b = np.zeros(Q)
            place = domain.index(species[j]) * B
            b[place : place + B] = radial(config, d)
            seen.append((r / d, b))
        zero = sum((b @ net["density_mixing"][c] for _, b in seen), np.zeros(C)) / np.sqrt(Q * average)
        P = np.zeros((l_max + 1, C))
        for a, b_a in seen:
            for b, b_b in seen:
                for l in range(l_max + 1):
                    mix = net["radial_mixing"][c, l]
                    left, right = (b_a @ mix[:, :C]), (b_b @ mix[:, C:])
                    # sum_m Y_lm(a) Y_lm(b) = (2l + 1) P_l(cos)
                    P[l] += (
                        left * right * np.sqrt(2 * l + 1) * legval(a @ b, [0.0] * l + [1.0]) / (Q * average)
                    )
        x = np.concatenate([zero, P.ravel()])
        depth = len(config["hidden"])
        energies[i] = network(net, x, depth) - network(net, np.zeros_like(x), depth)
    return params["scale"][species] * energies + params["shift"][species]


@pytest.mark.parametrize("allowed_species", [("Pt", "C"), ("C", "Pt"), ("Pt",), ("C",)])
def test_invariants_are_sums_over_triples(allowed_species):
    expert = small_power_spectrum(allowed_species)
    params = randomized(expert, seed=5)
    # Centres outside the domain have no meaning; neighbours outside it are unseen.
    centers = np.flatnonzero([SPECIES[s] in allowed_species for s in ATOMS])
    found = np.asarray(jax.jit(expert.atom_energies)(params, cluster_rows(POSITION, ATOMS, extra_slots=1)))
    species = ATOMS.copy()
    inside = np.isin(np.arange(len(ATOMS)), centers)
    expected = reference(expert.config, params, POSITION[inside], species[inside])
    assert np.abs(expected - params["shift"][species[inside]]).min() > 1e-3
    close(found[inside], expected, 1e-10)


def test_a_triple_is_told_from_its_pairs():
    """Two shells with the same distances and other angles have other energies."""
    expert = small_power_spectrum()
    params = randomized(expert)
    right = np.array([[0.0, 0, 0], [1.8, 0, 0], [0, 1.8, 0]])
    straight = np.array([[0.0, 0, 0], [1.8, 0, 0], [-1.8, 0, 0]])
    energy_fn = jax.jit(expert.atom_energies)
    energies = [energy_fn(params, cluster_rows(R, np.zeros(3, int)))[0] for R in (right, straight)]
    assert abs(energies[0] - energies[1]) > 1e-4


def test_one_species_needs_one_block():
    params = power_spectrum(SPECIES, 3.0, allowed_species=("Pt",), num_bessels=4, num_channels=3).init(
        jax.random.key(0)
    )
    assert params["network"]["radial_mixing"].shape == (1, 4, 4, 6)
    assert params["scale"].shape == (2,)  # indices of species are shared by all experts
