"""Files of labelled frames: files, folders and patterns of names, in any format that ASE reads."""

import glob
import os
from pathlib import Path
from typing import NamedTuple

import ase.io
from ase import Atoms
from ase.io.formats import filetype

from moe_md.data import extxyz

# Names of files that a folder is searched for.
LABELLED = (
    "*.xyz",
    "*.extxyz",
    "*.xyz.gz",
    "*.xyz.bz2",
    "*.xyz.xz",
    "*OUTCAR*",
    "*vasprun*.xml*",
    "*.traj",
    "*.db",
    "*.json",
)
ROWS = ("extxyz", "db", "json")  # formats whose frames need not belong together; others are trajectories


class Source(NamedTuple):
    """The frames of one file."""

    name: str  # what messages and groups call the file: its path below the folder that all files share
    path: Path
    images: list[Atoms]  # labels in `info`, `arrays` and the results of a calculator
    is_trajectory: bool  # whether its frames follow one another


def read_sources(path: str | Path) -> list[Source]:
    """All frames of some files.

    Args:
        path: a file, a folder, which is searched for files of `LABELLED` names with all its
            folders, or a pattern such as "runs/*/OUTCAR"; several are separated by commas.

    Returns:
        Each file once, in the order given; those of a folder or pattern in that of their names.

    Raises:
        ValueError: there is no such file, or one cannot be read.
    """
    files = labelled_files(path)
    absolute = [file.absolute() for file in files]  # some may be relative and some not
    above = os.path.commonpath([file.parent for file in absolute])
    return [_read(file, str(whole.relative_to(above))) for file, whole in zip(files, absolute)]


def names_of(path: str | Path) -> list[str]:
    """Names that commas separate; a file whose own name has a comma is one.

    >>> names_of("first.xyz, second.xyz")
    ['first.xyz', 'second.xyz']
    """
    return [str(path)] if Path(path).exists() else [name.strip() for name in str(path).split(",")]


def labelled_files(path: str | Path) -> list[Path]:
    """The files that `read_sources` reads; arguments and errors as there."""
    found: dict[Path, None] = {}
    for name in names_of(path):
        part = Path(name).expanduser()
        if part.is_dir():
            files = sorted({file for name in LABELLED for file in part.rglob(name) if file.is_file()})
            if not files:
                raise ValueError(
                    f"path must be a folder with labelled frames, got {part}, which has no file of the names"
                    f" {', '.join(LABELLED)}: name the files, or a pattern such as '{part}/*/frames'."
                )
        elif part.exists() or not glob.has_magic(str(part)):
            files = [part]
        else:
            files = sorted(
                Path(name) for name in glob.glob(str(part), recursive=True) if Path(name).is_file()
            )
            if not files:
                raise ValueError(f"path must match a file, got {part}, which matches none.")
        found.update(dict.fromkeys(files))
    return list(found)


def _read(path: Path, name: str) -> Source:
    if not path.is_file():
        raise ValueError(f"path must be an existing file, got {path}.")
    form = _format(path)
    try:
        images = None if form == "extxyz" else ase.io.read(path, index=":", format=form)
    except Exception as error:  # ASE raises many types
        raise ValueError(f"path must be a file that ASE reads, got {path}: {error!s:.200}.") from None
    if images is None:
        images = extxyz.read_images(path)
    if not isinstance(images, list) or not images:
        raise ValueError(f"path must hold at least one frame, got {path} without any.")
    return Source(name, path, images, form not in ROWS)


def _format(path: Path) -> str:
    """ASE's name of a format; extended XYZ, whose reader says what it misses, where ASE knows none."""
    try:
        return filetype(str(path))
    except Exception:  # ASE raises many types
        return "extxyz"
