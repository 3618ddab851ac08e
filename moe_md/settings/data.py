"""Settings of the labelled frames."""

from dataclasses import dataclass
from pathlib import Path

from moe_md.checks import check_fields
from moe_md.settings.option import option

PACKAGED_FRAMES = tuple(
    sorted(
        path.parent.name + ("" if path.name == "frames.xyz.gz" else "_" + path.name.removesuffix(".xyz.gz"))
        for path in (Path(__file__).parent.parent / "data").glob("*/*.xyz.gz")
    )
)
DATA = "ptco_pbe"  # the packaged frames that are read by default


@dataclass(frozen=True)
class DataSettings:
    """Labelled frames; keys of the `[data]` table of a settings file."""

    file: str = option(
        DATA,
        "files that ASE reads, folders or patterns, with commas, or packaged frames: "
        + ", ".join(PACKAGED_FRAMES),
    )
    energy_key: str | None = option(None, "name of the energy; default free_energy, energy or REF_energy")
    forces_key: str | None = option(None, "name of the forces; default forces, force or REF_forces")
    stress_key: str | None = option(None, "name of the stress, eV/Å^3; default stress or REF_stress")
    virial_key: str | None = option(
        None, "name of the virial, eV, which gives the stress, minus virial over volume; default virial"
    )
    group_key: str = option("origin", "name of the label that frames of one trajectory share")
    kind_key: str = option("kind", "name of the label by which errors are reported")
    drop_outliers: float | None = option(
        None,
        "eV/atom: frames whose energy is farther from the fit by composition are left out, and named",
        positive=True,
    )
    level_of_theory: str | None = option(
        None, "of the labels, such as 'PBE, 400 eV'; default the entry level_of_theory of the frames"
    )

    def __post_init__(self):
        check_fields(self)
        for name, value in vars(self).items():
            if isinstance(value, str) and not value.strip():
                raise ValueError(f"{name} must not be empty.")
