"""The cheap expert's domain, fitted to the environments in which training makes experts agree."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from moe_md.data.environments import KINDS, ROWS_PER_CLUSTER, Lattice, random_rows
from moe_md.experts import familiarity
from moe_md.experts.base import Expert
from moe_md.neighbors.rows import Neighborhood
from moe_md.settings import EnvironmentSettings
from moe_md.training.inputs import Environments


def with_domain(expert: Expert, environments: Environments | None, seed: int) -> Expert:
    """The expert with a domain of species and of environments as they are drawn in training.

    Args:
        expert: the cheap one; a familiarity that it has is replaced.
        environments: of the training; None leaves a domain of species alone.
        seed: of the random environments.
    """
    if environments is None or environments.settings.domain_rows == 0:
        return expert._replace(familiarity=None)
    rng = np.random.default_rng([seed, 3])
    lattices, settings = environments.lattices, environments.settings
    n_species = len({symbol for each in lattices for symbol in each.reference.atoms.symbols})
    n_groups = -(-2 * settings.domain_rows * n_species // ROWS_PER_CLUSTER)
    # Half of the rows are for means and covariances, half for limits.
    kinds = [
        list(_groups(rng, lattices, of_kind, expert.cutoff, n_groups))
        for of_kind in _settings_of_kinds(settings, n_species)
    ]
    fitted = familiarity.fit(kinds, len(expert.species), expert.cutoff)
    return expert._replace(familiarity=fitted)


def _settings_of_kinds(settings: EnvironmentSettings, n_species: int) -> list[EnvironmentSettings]:
    """Settings that draw one kind each: strained crystals first, then each kind that has a share."""
    none = dict.fromkeys(KINDS, 0.0)
    chosen = [kind for kind in KINDS if getattr(settings, kind) > 0]
    chosen = [kind for kind in chosen if kind != "antisites" or n_species > 1]
    return [replace(settings, **none), *(replace(settings, **{**none, kind: 1.0}) for kind in chosen)]


def _groups(
    rng: np.random.Generator,
    lattices: tuple[Lattice, ...],
    settings: EnvironmentSettings,
    cutoff: float,
    n_groups: int,
) -> Iterator[Neighborhood]:
    """Rows of random environments, of all references in turn."""
    for k in range(n_groups):
        # The order of references does not go with that of groups, of which every other one is fitted.
        yield random_rows(rng, lattices[k // 2 % len(lattices)], settings, cutoff, ROWS_PER_CLUSTER)
