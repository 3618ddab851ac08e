"""Trajectories in the H5MD layout that stay readable when the process is killed.

    /h5md                     version, author, creator, units in use
    /particles/all            position, velocity, force, box/edges: {step, time, value}
                              species, mass, expert, fixed: constant in time
    /observables              energies, temperature, pressure: {step, time, value}

Source: de Buyl, Colberg, Höfling, Comput. Phys. Commun. 185, 1546 (2014);
specification 1.1, https://nongnu.org/h5md. All elements share one `step` and
one `time` (hard links). Forces are in kJ/mol/Å, which common readers support; they do
not support eV/Å.

The file is written in HDF5's single-writer multiple-reader (SWMR) mode: data reach
the disk before the metadata that refer to them, and a frame's step is written last.
A killed process therefore leaves complete frames. Its file is still marked as open for
writing, and readers without SWMR refuse it. `H5MDWriter(path, ..., append=True).close()`
removes the mark. HDF5 crashes when a write fails, so disk space is reserved before each
write.
"""

import os
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import ase
import ase.units
import h5py
import numpy as np
from ase.cell import Cell
from jax.typing import ArrayLike
from jaxtyping import Bool, Integer, Real

from moe_md import units
from moe_md.reporters.trajectory import (
    cell_of,
    check_atoms,
    check_until_step,
    naming,
    positions_of,
    template_atoms,
)
from moe_md.simulate.run import Frame

FORCE = ase.units.mol / ase.units.kJ  # kJ/mol/Å in one eV/Å
COPY_BYTES = 2**25  # size of a block in copying
METADATA_BYTES = 2**20  # reserved for HDF5's own tables
NO_STEP = -1  # step of an incomplete frame
FIXED = "particles/all/fixed"
STEP, TIME = (f"particles/all/position/{name}" for name in ("step", "time"))


class H5MDWriter:
    """A reporter that writes frames in the H5MD layout.

    Args:
        path: file to write.
        symbols: chemical symbol of each atom.
        cell: Å, `[3, 3]` lattice vectors as rows (ASE), or three edges; used for
            frames without a box.
        pbc: three booleans, or one for all.
        expert: of each atom, written as the time-independent element `expert`.
        masses: amu, written as `mass`; default ASE's.
        fixed_mask: components that hold still, written as `fixed`.
        forces: write forces and velocities too.
        append: keep the frames of an existing file. The file is copied and then
            replaced atomically.
        until_step: with `append`, drop frames of later steps. Steps in the
            file must ascend.
        dtype: of positions, velocities and forces on disk.
        compression: of positions, velocities and forces: None, `"gzip"` or `"lzf"`.
        author: author's name, which the format requires.

    Raises:
        ValueError: `expert`, `masses` or `fixed_mask` do not fit, `until_step` is given
            without `append`, or the file to append to is not H5MD or has other
            atoms or elements.
        OSError: the file cannot be written; the message names it.
    """

    def __init__(
        self,
        path,
        symbols: Sequence[str],
        cell: Real[ArrayLike, "..."] | Sequence | Cell,
        pbc: Bool[ArrayLike, "..."] | Sequence,
        *,
        expert: Integer[ArrayLike, " atoms"] | Sequence | None = None,
        masses: Real[ArrayLike, " atoms"] | Sequence | None = None,
        fixed_mask: Bool[ArrayLike, "atoms 3"] | None = None,
        forces: bool = True,
        append: bool = False,
        until_step: int | None = None,
        dtype=np.float64,
        compression: str | None = None,
        author: str = "unknown",
    ) -> None:
        self._atoms = template_atoms(symbols, cell, pbc, expert, masses)
        self._elements = _elements(self._atoms, forces)
        self._path = Path(path)
        check_until_step(append, until_step)
        partial = self._path.with_name(f".{self._path.name}.partial")
        with naming(self._path):
            try:
                self._file = _create(partial)
                try:
                    _reserve(self._file, 0)
                    _create_datasets(
                        self._file, self._atoms, self._elements, np.dtype(dtype), compression, author
                    )
                    if fixed_mask is not None:
                        self._file.create_dataset(FIXED, data=np.asarray(fixed_mask, np.int8))
                    if append and self._path.exists():
                        _copy_frames(self._path, self._file, self._elements, until_step)
                    self._file.swmr_mode = True
                    self._file.flush()
                    os.replace(partial, self._path)  # the file stays open
                except BaseException:
                    self.close()
                    raise
            except BaseException:
                partial.unlink(missing_ok=True)
                raise

    def __call__(self, frame: Frame) -> None:
        """Write a frame; it is on disk when this returns."""
        check_atoms(frame, len(self._atoms))
        with naming(self._path):
            _reserve(self._file, _frame_bytes(self._file, self._elements))
            k = self._file[STEP].shape[0]
            for element in self._elements:
                _append(self._file[element.value], k, element.get(frame))
            _append(self._file[TIME], k, frame.time_ps)
            _append(self._file[STEP], k, frame.step)  # last: marks the frame as complete

    def close(self) -> None:
        """Close the file and release reserved space."""
        if self._file:
            used, handle = self._file.id.get_filesize(), os.dup(self._file.id.get_vfd_handle())
            try:
                self._file.close()
                os.ftruncate(handle, used)
            finally:
                os.close(handle)


class _Element(NamedTuple):
    """A quantity that is written for every frame."""

    name: str  # of the group in the file
    shape: tuple[int, ...]
    unit: str
    get: Callable  # (frame) -> value

    @property
    def value(self) -> str:
        """Name of the dataset of values."""
        return f"{self.name}/value"


def _elements(atoms: ase.Atoms, forces: bool) -> tuple[_Element, ...]:
    rows = (len(atoms), 3)
    per_atom = [
        _Element("particles/all/box/edges", (3, 3), "Angstrom", lambda f: cell_of(f, atoms)),
        _Element("particles/all/position", rows, "Angstrom", positions_of),
    ]
    if forces:
        per_atom += [
            _Element(
                "particles/all/velocity",
                rows,
                "Angstrom ps-1",
                lambda f: np.asarray(f.velocity, float) * units.ps,
            ),
            _Element(
                "particles/all/force",
                rows,
                "kJ mol-1 Angstrom-1",
                lambda f: np.asarray(f.force, float) * FORCE,
            ),
        ]
    scalars = [
        _Element("observables/potential_energy", (), "eV", lambda f: f.potential),
        _Element("observables/kinetic_energy", (), "eV", lambda f: f.kinetic),
        _Element("observables/total_energy", (), "eV", lambda f: f.total),
        _Element("observables/conserved_energy", (), "eV", lambda f: f.conserved),
        _Element("observables/temperature", (), "K", lambda f: f.temperature_K),
        _Element("observables/pressure", (), "GPa", lambda f: f.pressure_GPa),
    ]
    return (*per_atom, *scalars)


def _create(path: Path) -> h5py.File:
    """An empty HDF5 file, after a check that the disk has space for it."""
    if hasattr(os, "posix_fallocate"):
        with open(path, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, METADATA_BYTES)
    return h5py.File(path, "w", libver=("v110", "v110"))  # the oldest with SWMR mode


def _reserve(file: h5py.File, n_bytes: int) -> None:
    """Reserve the blocks that HDF5 is about to write, or raise `OSError`."""
    if hasattr(os, "posix_fallocate"):  # not on macOS
        handle = file.id.get_vfd_handle()
        allocated, required = os.fstat(handle).st_size, file.id.get_filesize() + n_bytes + METADATA_BYTES
        if required > allocated:
            os.posix_fallocate(handle, allocated, required - allocated)


def _frame_bytes(file: h5py.File, elements) -> int:
    """Bytes of one frame, with its entries in HDF5's tables."""
    return sum(16 + file[e.value].dtype.itemsize * int(np.prod(e.shape)) for e in elements) + 64


def _create_datasets(
    file: h5py.File, atoms: ase.Atoms, elements, dtype: np.dtype, compression, author: str
) -> None:
    """Create all groups, datasets and attributes; SWMR mode cannot create them later."""
    file.create_group("h5md").attrs["version"] = np.array([1, 1], np.int32)
    file.create_group("h5md/author").attrs["name"] = author
    file.create_group("h5md/creator").attrs.update(name="moe_md", version=_version())
    file.create_group("h5md/modules/units").attrs["version"] = np.array([1, 0], np.int32)

    box = file.create_group("particles/all/box")
    box.attrs["dimension"] = 3
    box.attrs.create("boundary", ["periodic" if p else "none" for p in atoms.pbc], dtype=h5py.string_dtype())
    atomic_numbers = dict(sorted({str(a.symbol): int(a.number) for a in atoms}.items()))
    file.create_dataset(
        "particles/all/species", data=atoms.numbers, dtype=h5py.enum_dtype(atomic_numbers, basetype=np.int32)
    )
    file.create_dataset("particles/all/mass", data=atoms.get_masses()).attrs["unit"] = "u"
    if "expert" in atoms.arrays:
        file.create_dataset("particles/all/expert", data=atoms.arrays["expert"], dtype=np.int32)

    def series(name: str, shape, dtype, **options) -> h5py.Dataset:
        # One frame of atoms to a chunk, so that a chunk is written once; scalars of 256 frames share one.
        chunks = (1, *shape) if shape else (256,)
        return file.create_dataset(
            name, (0, *shape), dtype, maxshape=(None, *shape), chunks=chunks, **options
        )

    step = series(STEP, (), np.int64, fillvalue=NO_STEP)
    time = series(TIME, (), np.float64)
    time.attrs["unit"] = "ps"
    for element in elements:
        is_per_atom = len(element.shape) == 2 and not element.name.endswith("edges")
        options = {"compression": compression} if is_per_atom else {}
        value = series(element.value, element.shape, dtype if is_per_atom else np.float64, **options)
        value.attrs["unit"] = element.unit
        group = file[element.name]
        if "step" not in group:
            group["step"], group["time"] = step, time


def _version() -> str:
    try:
        return metadata.version("moe_md")
    except metadata.PackageNotFoundError:  # not installed
        return "unknown"


def _append(dataset: h5py.Dataset, k: int, value) -> None:
    """Write the value of frame `k` at the end of a dataset and flush it to disk."""
    dataset.resize(k + 1, axis=0)
    dataset[k] = value
    dataset.flush()


def _copy_frames(path: Path, new: h5py.File, elements, until_step: int | None) -> None:
    """Copy the complete frames of an older file, which a killed process may have left open."""
    series = [*(e.value for e in elements), TIME, STEP]
    unreadable = f"{path} must be an H5MD trajectory to append to, but it cannot be read"
    try:
        old = h5py.File(path, "r", swmr=True)
    except OSError as error:
        raise ValueError(f"{unreadable}: {error}.") from None
    with old:
        try:
            steps = _checked_steps(path, old, new, series)
        except RuntimeError as error:  # h5py's exception for damaged files
            raise ValueError(f"{unreadable}: {error}.") from None
        beyond = (steps == NO_STEP) | (False if until_step is None else steps > until_step)
        n = int(np.argmax(beyond)) if beyond.any() else len(beyond)
        block = max(1, COPY_BYTES // _frame_bytes(new, elements))
        for name in series:
            new[name].resize(n, axis=0)
        for k in range(0, n, block):
            _reserve(new, block * _frame_bytes(new, elements))
            for name in series:
                new[name][k : k + block] = old[name][k : min(k + block, n)]
    new.flush()


def _checked_steps(path: Path, old: h5py.File, new: h5py.File, series: list[str]) -> np.ndarray:
    """`[n_frames]`, the steps of an older file; `ValueError` if it has other atoms or elements."""
    fixed = [
        name for name in (f"particles/all/{x}" for x in ("species", "mass", "expert", "fixed")) if name in new
    ]
    if missing := [name for name in (*fixed, *series) if name not in old]:
        raise ValueError(
            f"{path} must contain {', '.join(missing)} to append to it, but does not. Write to another file."
        )
    for name in fixed:
        if not np.array_equal(old[name][:], new[name][:]):
            raise ValueError(
                f"{path} must have the same {name} as the run that is appended. Write to another file."
            )
    return old[STEP][:]
