"""Settings of co-training."""

from dataclasses import dataclass, field

from moe_md.checks import check_fields
from moe_md.settings.option import option


@dataclass(frozen=True)
class LossWeights:
    """Coefficients of the joint loss; energies per atom in eV, forces in eV/Å, stress in eV/Å^3.

    A pytree of numbers.
    """

    energy: float = option(30.0, "energies per atom, eV", least=0)
    forces: float = option(1.0, "forces, eV/Å", least=0)
    stress: float = option(300.0, "stresses, eV/Å^3", least=0)
    agree_energy: float = option(30.0, "agreement of the two experts on atomic energies", least=0)
    agree_partial_forces: float = option(
        3.0, "agreement on partial forces, which removes ghost forces", least=0
    )
    agree_stress: float = option(3000.0, "agreement on stresses", least=0)
    agree_forces: float = option(0.0, "agreement on total forces; ghost forces remain", least=0)
    agree_random_assignment: float = option(
        0.0, "agreement of mixed forces with an expert assigned at random to each atom", least=0
    )
    cheap: float = option(1.0, "data term of the cheap expert, relative to the expensive one's", least=0)
    mixed: float = option(1.0, "data term of the mixed energy, relative to the expensive one's", least=0)

    def __post_init__(self):
        check_fields(self)


@dataclass(frozen=True)
class TrainSettings:
    """Co-training; keys of the `[training]` table of a settings file."""

    steps: int = option(
        4000, "optimiser steps: a batch of frames and one of unlabelled environments each", positive=True
    )
    max_atoms: int = option(
        32, "atoms of a labelled batch; tens for a CPU, hundreds for a GPU", positive=True
    )
    agreement_ramp: float = option(
        2.0, "agreement coefficients grow as (step / steps) to this power", least=0
    )
    agreement_gradient_scale: float = option(
        0.3, "factor on the agreement's gradient for the expensive expert", least=0, most=1
    )
    isolated_atoms: bool = option(
        False, "reference energies are those of isolated atoms in the data, not those of a fit by composition"
    )
    freeze_expensive: bool = option(
        False, "keep the expensive expert's parameters, those of `start`, and fit the cheap expert alone"
    )
    force_downweight_above: float = option(
        3.0,
        "eV/Å: frames with a larger root mean square force count less, by the square of the ratio",
        positive=True,
    )
    learning_rate: float = option(1e-2, "peak, between warm-up and cosine decay", positive=True)
    warmup_steps: int = option(100, "steps of the linear warm-up", least=0)
    final_learning_rate: float = option(
        0.01, "at the end of the cosine, relative to the peak", least=0, most=1
    )
    clip_norm: float = option(10.0, "largest norm of the gradient", positive=True)
    ema_decay: float = option(
        0.998, "decay of the exponential moving average of parameters, which is saved", least=0, most=1
    )
    seed: int = option(0, "of parameters, batches and split", least=0)
    validate_every: int = option(500, "steps", positive=True)
    patience: int = option(
        0,
        "stop after this many validations without a lower loss, keep the best parameters; 0: never",
        least=0,
    )
    save_every: int = option(500, "steps between saved states from which training resumes", positive=True)
    weights: LossWeights = field(default_factory=LossWeights)

    def __post_init__(self):
        check_fields(self)
