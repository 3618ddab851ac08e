"""ML-IAP: experts that compute atoms outside their domains are warned of, once."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest

import moe_md as mm
from moe_md.interfaces.mliap import MixtureMLIAP


@pytest.fixture
def adapter(tmp_path):
    """The cheap expert may meet platinum alone."""
    experts = [
        mm.experts.lennard_jones(("C", "Pt"), 4.0, epsilon=0.2, sigma=2.5, allowed_species=allowed)
        for allowed in (("C", "Pt"), ("Pt",))
    ]
    model = mm.Checkpoint(tuple(experts), tuple(e.init(None) for e in experts), {}, {})
    mm.save(tmp_path / "model.msgpack", model)
    return MixtureMLIAP(tmp_path / "model.msgpack", [("C", 0), ("Pt", 1)])


def messages(adapter, distance, n_calls):
    """Warnings of calls with carbon at a distance (Å) of two atoms of the cheap expert."""
    rij = np.array([[distance, 0.0, 0.0], [-distance, 0.0, 0.0]])
    data = SimpleNamespace(
        nlistatoms=3,
        npairs=4,
        iatoms=np.arange(3),
        elems=np.array([0, 1, 1]),
        pair_i=np.array([0, 0, 1, 2]),
        pair_j=np.array([1, 2, 0, 0]),
        rij=np.concatenate([rij, -rij]),
        update_pair_forces=lambda forces: None,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(n_calls):
            adapter.compute_forces(data)
    return [str(w.message) for w in caught]


def test_atoms_outside_a_domain_are_warned_of_once(adapter):
    assert messages(adapter, 4.5, 1) == []  # beyond the cutoff
    found = messages(adapter, 3.0, 200)
    assert len(found) == 1 and "region gives expert 1 2 atoms" in found[0], found
