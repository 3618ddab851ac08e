"""A folder of files that the tests of commands share."""

import pytest
from ase.build import fcc111

from moe_md import checkpoint, experts

SPECIES, CUTOFF = ("Pt", "C", "O"), 4.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a Lennard-Jones checkpoint, a clean slab, and settings of two small experts."""
    folder = tmp_path_factory.mktemp("cli")
    built = [
        experts.lennard_jones(SPECIES, CUTOFF, epsilon=epsilon, sigma=2.5446, allowed_species=domain)
        for epsilon, domain in ((0.6, SPECIES), (0.59, ("Pt",)))
    ]
    params = tuple(e.init(None) for e in built)
    checkpoint.save(folder / "model.msgpack", checkpoint.Checkpoint(tuple(built), params, {}, {}))
    atoms = fcc111("Pt", (4, 4, 4), a=3.92, vacuum=6.0, orthogonal=True)
    atoms.write(folder / "slab.extxyz")
    (folder / "train.toml").write_text(
        f"""
        [expensive]
        builder = "lennard_jones"
        cutoff = {CUTOFF}
        epsilon = 0.5
        sigma = 1.2
        [cheap]
        builder = "lennard_jones"
        cutoff = {CUTOFF}
        allowed_species = ["Pt"]
        sigma = 1.2
        [training]
        steps = 4
        validate_every = 4
        [training.weights]
        energy = 1.0
        """
    )
    return folder
