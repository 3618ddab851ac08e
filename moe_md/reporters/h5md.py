"""Trajectories in the H5MD layout, which survive a kill.

    /h5md                     version, author, creator, units in use
    /particles/all            position, velocity, force, box/edges: {step, time, value}
                              species, mass, expert: fixed in time
    /observables              energies, temperature, pressure: {step, time, value}

Source: de Buyl, Colberg, Höfling, Comput. Phys. Commun. 185, 1546 (2014);
specification 1.1, https://nongnu.org/h5md. All elements share one `step` and
one `time` (hard links). Forces are in kJ/mol/Å: readers know no eV/Å.

The file is written in HDF5's single-writer mode, in which data reach the disk
before what refers to them, a frame's step last: a process that dies leaves a
file of whole frames. Such a file still says that someone writes to it; plain
readers refuse it until `H5MDWriter(path, ..., append=True).close()`. HDF5 does
not survive a write that fails, so room on the disk is taken before it writes.
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

from moe_md import units
from moe_md.reporters.trajectory import cell_of, check_atoms, check_cut, described, naming, positions_of
from moe_md.simulate.run import Frame

FORCE = ase.units.mol / ase.units.kJ  # kJ/mol/Å in one eV/Å
COPY_BYTES = 2**25  # copied at a time
SPARE_BYTES = 2**20  # room for HDF5's own tables
NO_STEP = -1  # where a frame is not yet whole
STEP, TIME = (f"particles/all/position/{name}" for name in ("step", "time"))


class H5MDWriter:
    """Frames in the H5MD layout.

    Args:
        path: file to write.
        symbols: `[n_atoms]` chemical symbols.
        cell: `[3, 3]` Å, lattice vectors as rows (ASE), or three edges; of
            frames that bring no box of their own.
        pbc: three booleans.
        expert: `[n_atoms]` int, written as the fixed element `expert`.
        forces: write forces and velocities too.
        append: keep what the file holds. It is copied, and replaced as a whole.
        until_step: with `append`, drop frames of later steps. Steps in the
            file ascend.
        dtype: of positions, velocities and forces on disk.
        compression: of those three, `"gzip"` or `"lzf"`.
        author: name for the file's head, which the format demands.

    Raises:
        ValueError: `expert` is not one integer per atom, `until_step` comes
            without `append`, or the file to append to is not H5MD or of other
            atoms or elements.
        OSError: the file cannot be written; the message names it.
    """

    def __init__(
        self,
        path,
        symbols: Sequence[str],
        cell,
        pbc,
        *,
        expert=None,
        forces=True,
        append=False,
        until_step=None,
        dtype=np.float64,
        compression: str | None = None,
        author: str = "unknown",
    ):
        self._atoms = described(symbols, cell, pbc, expert)
        self._elements = _elements(self._atoms, forces)
        self._path = Path(path)
        check_cut(append, until_step)
        partial = self._path.with_name(f".{self._path.name}.partial")
        with naming(self._path):
            try:
                self._file = _created(partial)
                try:
                    _take_room(self._file, 0)
                    _begin(self._file, self._atoms, self._elements, np.dtype(dtype), compression, author)
                    if append and self._path.exists():
                        _copy(self._path, self._file, self._elements, until_step)
                    self._file.swmr_mode = True
                    self._file.flush()
                    os.replace(partial, self._path)  # the open file keeps its handle
                except BaseException:
                    self.close()
                    raise
            except BaseException:
                partial.unlink(missing_ok=True)
                raise

    def __call__(self, frame: Frame) -> None:
        check_atoms(frame, len(self._atoms))
        with naming(self._path):
            _take_room(self._file, _frame_bytes(self._file, self._elements))
            k = self._file[STEP].shape[0]
            for element in self._elements:
                _put(self._file[element.value], k, element.of(frame))
            _put(self._file[TIME], k, frame.time_ps)
            _put(self._file[STEP], k, frame.step)  # says that the frame is whole

    def close(self) -> None:
        """Close the file."""
        if self._file:
            used, handle = self._file.id.get_filesize(), os.dup(self._file.id.get_vfd_handle())
            try:
                self._file.close()
                os.ftruncate(handle, used)
            finally:
                os.close(handle)


class _Element(NamedTuple):
    """Something that is written for every frame."""

    name: str
    shape: tuple[int, ...]
    unit: str
    of: Callable  # (frame) -> value

    @property
    def value(self) -> str:
        """Name of the dataset."""
        return f"{self.name}/value"


def _elements(atoms: ase.Atoms, forces: bool) -> tuple[_Element, ...]:
    rows = (len(atoms), 3)
    of_particles = [
        _Element("particles/all/box/edges", (3, 3), "Angstrom", lambda f: cell_of(f, atoms)),
        _Element("particles/all/position", rows, "Angstrom", positions_of),
    ]
    if forces:
        of_particles += [
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
    of_system = [
        _Element("observables/potential_energy", (), "eV", lambda f: f.potential),
        _Element("observables/kinetic_energy", (), "eV", lambda f: f.kinetic),
        _Element("observables/total_energy", (), "eV", lambda f: f.total),
        _Element("observables/conserved_energy", (), "eV", lambda f: f.conserved),
        _Element("observables/temperature", (), "K", lambda f: f.temperature_K),
        _Element("observables/pressure", (), "GPa", lambda f: f.pressure_GPa),
    ]
    return (*of_particles, *of_system)


def _created(path: Path) -> h5py.File:
    if hasattr(os, "posix_fallocate"):  # see that there is room before HDF5 writes anything
        with open(path, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, SPARE_BYTES)
    return h5py.File(path, "w", libver=("v110", "v110"))  # the oldest that knows single-writer mode


def _take_room(file: h5py.File, n_bytes: int) -> None:
    """Let the file own the blocks that HDF5 is about to write, or raise `OSError`."""
    if hasattr(os, "posix_fallocate"):  # not on macOS
        handle = file.id.get_vfd_handle()
        owned, wanted = os.fstat(handle).st_size, file.id.get_filesize() + n_bytes + SPARE_BYTES
        if wanted > owned:
            os.posix_fallocate(handle, owned, wanted - owned)


def _frame_bytes(file: h5py.File, elements) -> int:
    """Of one frame, with its entries in HDF5's tables."""
    return sum(16 + file[e.value].dtype.itemsize * int(np.prod(e.shape)) for e in elements) + 64


def _begin(file: h5py.File, atoms: ase.Atoms, elements, dtype: np.dtype, compression, author: str) -> None:
    """Everything that single-writer mode cannot create later."""
    file.create_group("h5md").attrs["version"] = np.array([1, 1], np.int32)
    file.create_group("h5md/author").attrs["name"] = author
    file.create_group("h5md/creator").attrs.update(name="moe_md", version=_version())
    file.create_group("h5md/modules/units").attrs["version"] = np.array([1, 0], np.int32)

    box = file.create_group("particles/all/box")
    box.attrs["dimension"] = 3
    box.attrs.create("boundary", ["periodic" if p else "none" for p in atoms.pbc], dtype=h5py.string_dtype())
    kinds = dict(sorted({str(a.symbol): int(a.number) for a in atoms}.items()))
    file.create_dataset(
        "particles/all/species", data=atoms.numbers, dtype=h5py.enum_dtype(kinds, basetype=np.int32)
    )
    file.create_dataset("particles/all/mass", data=atoms.get_masses()).attrs["unit"] = "u"
    if "expert" in atoms.arrays:
        file.create_dataset("particles/all/expert", data=atoms.arrays["expert"], dtype=np.int32)

    def series(name: str, shape, dtype, **options) -> h5py.Dataset:
        # One frame of atoms to a chunk: written once, never touched again. Numbers share chunks.
        chunks = (1, *shape) if shape else (256,)
        return file.create_dataset(
            name, (0, *shape), dtype, maxshape=(None, *shape), chunks=chunks, **options
        )

    step = series(STEP, (), np.int64, fillvalue=NO_STEP)
    time = series(TIME, (), np.float64)
    time.attrs["unit"] = "ps"
    for element in elements:
        of_atoms = len(element.shape) == 2 and not element.name.endswith("edges")
        options = {"compression": compression} if of_atoms else {}
        value = series(element.value, element.shape, dtype if of_atoms else np.float64, **options)
        value.attrs["unit"] = element.unit
        group = file[element.name]
        if "step" not in group:
            group["step"], group["time"] = step, time


def _version() -> str:
    try:
        return metadata.version("moe_md")
    except metadata.PackageNotFoundError:  # a source tree, not installed
        return "unknown"


def _put(dataset: h5py.Dataset, k: int, value) -> None:
    """Frame `k`, on disk when this returns."""
    dataset.resize(k + 1, axis=0)
    dataset[k] = value
    dataset.flush()


def _copy(path: Path, new: h5py.File, elements, until_step: int | None) -> None:
    """The whole frames of an older file, which a kill may have left open."""
    series = [*(e.value for e in elements), TIME, STEP]
    unreadable = f"{path} must be an H5MD trajectory to append to, but it cannot be read"
    try:
        old = h5py.File(path, "r", swmr=True)
    except OSError as error:
        raise ValueError(f"{unreadable}: {error}.") from None
    with old:
        try:
            steps = _checked(path, old, new, series)
        except RuntimeError as error:  # so h5py calls damage
            raise ValueError(f"{unreadable}: {error}.") from None
        beyond = (steps == NO_STEP) | (False if until_step is None else steps > until_step)
        n = int(np.argmax(beyond)) if beyond.any() else len(beyond)
        block = max(1, COPY_BYTES // _frame_bytes(new, elements))
        for name in series:
            new[name].resize(n, axis=0)
        for k in range(0, n, block):
            _take_room(new, block * _frame_bytes(new, elements))
            for name in series:
                new[name][k : k + block] = old[name][k : min(k + block, n)]
    new.flush()


def _checked(path: Path, old: h5py.File, new: h5py.File, series: list[str]) -> np.ndarray:
    """`[n_frames]`, the steps of an older file of the same atoms and elements."""
    fixed = [name for name in (f"particles/all/{x}" for x in ("species", "mass", "expert")) if name in new]
    if missing := [name for name in (*fixed, *series) if name not in old]:
        raise ValueError(f"{path} must hold {', '.join(missing)} to append to, but it does not.")
    for name in fixed:
        if not np.array_equal(old[name][:], new[name][:]):
            raise ValueError(f"{path} must hold the same {name} as the run that is appended.")
    return old[STEP][:]
