"""What training is told."""

import re
from dataclasses import dataclass, field

from moe_md.checks import check_fields
from moe_md.settings.option import option


@dataclass(frozen=True)
class LossWeights:
    """Weights of the joint loss; energies per atom in eV, forces in eV/Å, stress in eV/Å^3.

    A pytree of numbers.
    """

    energy: float = option(30.0, "of energies per atom, eV")
    forces: float = option(1.0, "eV/Å")
    stress: float = option(300.0, "eV/Å^3")
    agree_energy: float = option(30.0, "agreement of the two experts on energies of rows")
    agree_partial_forces: float = option(3.0, "on partial forces: no seam then shows ghost forces")
    agree_stress: float = option(3000.0, "on stresses")
    agree_forces: float = option(0.0, "on total forces, which leave ghost forces")
    agree_random_assignment: float = option(0.0, "by random seams")
    cheap: float = option(1.0, "of the cheap expert's data term, against that of the expensive one")
    mixed: float = option(1.0, "of the mixed energy's data term, likewise")

    def __post_init__(self):
        check_fields(self)
        for name, value in vars(self).items():
            if not value >= 0:
                raise ValueError(f"{name} must not be negative, got {value}.")


@dataclass(frozen=True)
class TrainSettings:
    """What training is told; keys of the `[training]` table of a settings file."""

    steps: int = option(4000, "batches, each of labelled frames and of metal")
    max_atoms: int = option(32, "rows of a labelled batch; few suit a CPU, a GPU wants hundreds")
    unlabelled_atoms: int = option(8, "rows of unlabelled, distorted metal per step; 0 for none")
    ideal_crystals: int = option(8, "strained one-atom cells beside them")
    ideal_crystal_weight: float = option(
        60.0, "of a perfect crystal's disagreement, against that of a distorted one"
    )
    metal: str = option("Pt", "what environments are made of")
    lattice_constant: float = option(3.98, "Å")
    max_strain: float = option(0.04, "of distorted metal")
    max_ideal_strain: float = option(0.03, "of perfect crystals")
    max_rattle: float = option(0.2, "Å")
    agreement_ramp: float = option(2.0, "the weights of agreement grow as (step / steps)^this")
    agreement_gradient_scale: float = option(
        0.3, "share of agreement's gradient that reaches the expensive expert"
    )
    force_downweight_above: float = option(
        3.0, "eV/Å: a frame whose root mean square force is beyond weighs less, by the square of the ratio"
    )
    learning_rate: float = option(1e-2, "peak of the warm-up and cosine")
    warmup_steps: int = option(100, "over which it rises")
    final_learning_rate: float = option(0.01, "share of the peak at the end of the cosine")
    clip_norm: float = option(10.0, "longest gradient")
    ema_decay: float = option(0.998, "of the averaged parameters, which are what is kept")
    seed: int = option(0, "of parameters, batches and split")
    validate_every: int = option(500, "steps")
    patience: int = option(
        0, "validations without a lower loss that end training with its best parameters; 0: to the last step"
    )
    save_every: int = option(500, "steps between states from which training goes on")
    weights: LossWeights = field(default_factory=LossWeights)

    def __post_init__(self):
        check_fields(self)
        positive = (
            "steps",
            "max_atoms",
            "lattice_constant",
            "force_downweight_above",
            "learning_rate",
            "clip_norm",
        )
        positive += ("validate_every", "save_every")
        for name in positive:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        not_negative = (
            "warmup_steps",
            "seed",
            "max_rattle",
            "agreement_ramp",
            "ideal_crystals",
            "ideal_crystal_weight",
            "patience",
        )
        for name in not_negative:
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        if self.unlabelled_atoms < 4 and self.unlabelled_atoms != 0:
            raise ValueError(f"unlabelled_atoms must be 0 or at least 4, got {self.unlabelled_atoms}.")
        for name in ("max_strain", "max_ideal_strain"):
            if not 0 <= getattr(self, name) < 0.3:
                raise ValueError(f"{name} must be in [0, 0.3), got {getattr(self, name)}.")
        if not re.fullmatch("[A-Z][a-z]?", self.metal):
            raise ValueError(f"metal must be a chemical symbol, got {self.metal!r}.")
        for name in ("ema_decay", "final_learning_rate", "agreement_gradient_scale"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {getattr(self, name)}.")
