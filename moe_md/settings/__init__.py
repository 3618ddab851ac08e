"""What a person types, as dataclasses: one for each command and table of a settings file.

The command line reads them before it does anything else, so nothing here imports jax or ASE.
"""

from moe_md.settings.data import DATA, PACKAGED_FRAMES, DataSettings
from moe_md.settings.demo import BenchSettings, DemoSettings
from moe_md.settings.option import help_of, option
from moe_md.settings.system import ExportSettings, RunSettings, SystemSettings
from moe_md.settings.training import LossWeights, TrainSettings
from moe_md.settings.validate import SECTIONS, ValidateSettings

__all__ = [
    "DATA",
    "PACKAGED_FRAMES",
    "SECTIONS",
    "BenchSettings",
    "DataSettings",
    "DemoSettings",
    "ExportSettings",
    "LossWeights",
    "RunSettings",
    "SystemSettings",
    "TrainSettings",
    "ValidateSettings",
    "help_of",
    "option",
]
