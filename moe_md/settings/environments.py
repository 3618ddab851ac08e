"""Settings of the unlabelled environments of a training."""

from dataclasses import dataclass

from moe_md.checks import check_fields
from moe_md.settings.option import option

FROM_DATA = "data"  # value of `references`


@dataclass(frozen=True)
class EnvironmentSettings:
    """Environments in which two experts are made to agree; keys of the `[environments]` table.

    They have no labels. They are cut from reference structures, and drawn anew at every step.
    """

    references: str = option(
        FROM_DATA,
        "files of perfect crystals, alloys, liquids or glasses, separated by commas; data: the crystals of"
        " lowest energy among the frames",
    )
    environment_rows: int = option(
        8, "distorted environments per step, an atom with its neighbours each; 0 for none", least=0
    )
    perfect_rows: int = option(8, "atoms of perfect crystals under strain per step; 0 for none", least=0)
    perfect_weight: float = option(
        60.0, "disagreement in a perfect crystal, relative to that in a distorted environment", least=0
    )
    max_strain: float = option(0.04, "largest strain of distorted environments", least=0, below=0.3)
    max_perfect_strain: float = option(0.03, "largest strain of perfect crystals", least=0, below=0.3)
    max_rattle: float = option(
        0.07,
        "largest standard deviation of random displacements, relative to the nearest distance of two atoms",
        least=0,
        below=0.5,
    )
    vacancies: float = option(0.15, "share of the distorted environments at a vacancy", least=0, most=1)
    interstitials: float = option(0.05, "share at an interstitial atom", least=0, most=1)
    antisites: float = option(
        0.1, "share at two atoms of different species that changed places", least=0, most=1
    )
    surfaces: float = option(
        0.3,
        "share at a surface, flat, stepped or with an adatom; 0 for crystals whose surfaces are polar",
        least=0,
        most=1,
    )
    domain_rows: int = option(
        1000,
        "distorted environments of each kind and species to which the cheap expert's domain is fitted; 0: a"
        " domain by species alone",
        least=0,
    )

    def __post_init__(self):
        if isinstance(self.references, (list, tuple)) and all(isinstance(x, str) for x in self.references):
            object.__setattr__(self, "references", ",".join(self.references))
        check_fields(self)
        total = self.vacancies + self.interstitials + self.antisites + self.surfaces
        if total > 1 + 1e-9:
            raise ValueError(
                "vacancies, interstitials, antisites and surfaces must add up to at most 1, the rest being"
                f" strained crystals, got {total:g}."
            )

    @property
    def is_empty(self) -> bool:
        """Whether no environments are asked for."""
        return self.environment_rows == 0 and self.perfect_rows == 0
