"""Settings that a person types: one dataclass for each command and table of a settings file.

The command line reads them first, so this package imports neither jax nor ASE.
"""

from moe_md.settings.data import DATA, PACKAGED_FRAMES, DataSettings
from moe_md.settings.demo import BenchSettings, DemoSettings
from moe_md.settings.environments import FROM_DATA, EnvironmentSettings
from moe_md.settings.option import help_of, option
from moe_md.settings.region import RegionScanSettings
from moe_md.settings.system import ExportSettings, RunSettings, SystemSettings
from moe_md.settings.training import LossWeights, TrainSettings
from moe_md.settings.validate import SECTIONS, ValidateSettings

__all__ = [
    "DATA",
    "FROM_DATA",
    "PACKAGED_FRAMES",
    "SECTIONS",
    "BenchSettings",
    "DataSettings",
    "DemoSettings",
    "EnvironmentSettings",
    "ExportSettings",
    "LossWeights",
    "RegionScanSettings",
    "RunSettings",
    "SystemSettings",
    "TrainSettings",
    "ValidateSettings",
    "help_of",
    "option",
]
