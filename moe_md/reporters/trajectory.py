"""Reporters that write trajectories, logs and the last state, and the drift of an energy.

Each frame is completely on disk when the reporter returns.
"""

import contextlib
import csv
import io
import os
import re
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

import ase
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.cell import Cell
from ase.constraints import FixAtoms, FixCartesian
from ase.io.extxyz import write_extxyz
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Integer, Real

from moe_md.files import lock_file, write_atomic
from moe_md.simulate.run import Frame, Log, State


class XYZWriter:
    """A reporter that writes extended XYZ, in the form that ASE reads.

    It holds energy, forces, momenta and the expert of each atom, with `step` and
    `time_ps` in the comment line; masses that are not ASE's, and the column
    `move_mask` where atoms are fixed, so that the last frame starts another run.

    Args:
        path: file to write.
        symbols: chemical symbol of each atom.
        cell: Å, `[3, 3]` lattice vectors as rows (ASE), or three edges; used for
            frames without a box.
        pbc: three booleans, or one for all.
        expert: of each atom, written as the column `expert`.
        masses: amu, written as the column `masses`; default ASE's, which are not
            written.
        fixed_mask: components that hold still.
        forces: write forces and momenta too.
        append: keep the frames of an existing file.
        until_step: with `append`, drop frames of later steps and an incomplete last
            frame. Steps in the file must ascend.

    Raises:
        ValueError: `expert`, `masses` or `fixed_mask` do not fit the atoms, `until_step`
            is given without `append`, or the file to truncate has frames without steps.
        OSError: the file cannot be written, or another process writes it; the message names it.
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
    ) -> None:
        self._atoms = template_atoms(symbols, cell, pbc, expert, masses, fixed_mask)
        self._forces = forces
        self._file = _Text(path, append, until_step, _xyz_frames)

    def __call__(self, frame: Frame) -> None:
        """Write a frame; it is on disk when this returns."""
        atoms = self._atoms.copy()
        check_atoms(frame, len(atoms))
        atoms.positions[:] = positions_of(frame)
        atoms.cell[:] = cell_of(frame, atoms)
        atoms.info = {"step": frame.step, "time_ps": frame.time_ps}
        results = {"energy": frame.potential}
        if self._forces:
            atoms.set_velocities(np.asarray(frame.velocity, float))
            results["forces"] = np.asarray(frame.force, float)
        atoms.calc = SinglePointCalculator(atoms, **results)
        text = io.StringIO()
        write_extxyz(text, [atoms])
        self._file.write(text.getvalue())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class LogWriter:
    """A reporter that writes the scalars of each frame as CSV, one column per field of `simulate.Log`.

    Args:
        path: file to write.
        append: keep the lines of an existing file; no second header is written.
        until_step: with `append`, drop lines of later steps and an incomplete last
            line. Steps in the file must ascend.

    Raises:
        ValueError: the file has other columns, or `until_step` is given without
            `append`.
        OSError: the file cannot be written, or another process writes it; the message names it.
    """

    def __init__(self, path, *, append: bool = False, until_step: int | None = None) -> None:
        header = _csv_line(Log._fields)
        found = _first_line(path) if append else ""
        incomplete = until_step is not None and header.startswith(found)
        if found not in ("", header) and not incomplete:
            raise ValueError(
                f"{path} must have the columns {header.strip()} to append to it, got {found.strip()!r}. "
                "Write to another file."
            )
        self._file = _Text(path, append, until_step, _csv_rows)
        if self._file.size() == 0:
            self._file.write(header)

    def __call__(self, frame: Frame) -> None:
        """Write a line; it is on disk when this returns."""
        self._file.write(_csv_line([getattr(frame, name) for name in Log._fields]))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class LastState:
    """A reporter that saves the last valid state when a run fails, as npz.

    Args:
        path: file to write, with the arrays `position`, `velocity`, `step` and
            `time_ps`.
    """

    def __init__(self, path):
        self._path = Path(path)

    def __call__(self, frame: Frame) -> None:
        del frame

    def on_failure(self, state: State) -> None:
        """Write the file atomically."""
        content = io.BytesIO()
        np.savez(
            content,
            position=np.asarray(state.position),
            velocity=np.asarray(state.velocity),
            step=state.step,
            time_ps=state.time_ps,
        )
        write_atomic(self._path, content.getvalue())


def template_atoms(
    symbols: Sequence[str],
    cell: Real[ArrayLike, "..."] | Sequence | Cell,
    pbc: Bool[ArrayLike, "..."] | Sequence,
    expert: Integer[ArrayLike, " atoms"] | Sequence | None,
    masses: Real[ArrayLike, " atoms"] | Sequence | None = None,
    fixed_mask: Bool[ArrayLike, "atoms 3"] | None = None,
) -> ase.Atoms:
    """ASE atoms with symbols, cell and periodicity, all at the origin.

    They have the arrays `expert` and `masses`, and constraints, where these are given.

    Raises:
        ValueError: `expert` or `masses` have not one number per symbol, or
            `fixed_mask` is not `[n_atoms, 3]`.
    """
    atoms = ase.Atoms(list(symbols), np.zeros((len(symbols), 3)), cell=np.asarray(cell, float), pbc=pbc)
    for name, values, kind in (("expert", expert, int), ("masses", masses, float)):
        if values is None:
            continue
        if np.shape(values) != (len(symbols),):
            raise ValueError(
                f"{name} must have shape [{len(symbols)}], one per symbol, got {np.shape(values)}."
            )
        atoms.arrays[name] = np.asarray(values, kind)
    if fixed_mask is not None:
        if np.shape(fixed_mask) != (len(symbols), 3):
            raise ValueError(f"fixed_mask must have shape [{len(symbols)}, 3], got {np.shape(fixed_mask)}.")
        atoms.set_constraint(constraints_of(fixed_mask))
    return atoms


def constraints_of(fixed_mask) -> list:
    """ASE's constraints of components that hold still, `[n_atoms, 3]` bool: fixed atoms, then the others."""
    mask = np.asarray(fixed_mask, bool)
    whole = mask.all(axis=1)
    patterns = np.unique(mask[~whole & mask.any(axis=1)], axis=0)
    partly = [FixCartesian(np.flatnonzero((mask == p).all(axis=1)), mask=tuple(p)) for p in patterns]
    return [FixAtoms(mask=whole)] * bool(whole.any()) + partly


def check_atoms(frame: Frame, n_atoms: int) -> None:
    """Raise `ValueError` where a frame has another number of atoms."""
    if frame.position.shape != (n_atoms, 3):
        raise ValueError(
            f"symbols must name the {frame.position.shape[0]} atoms of the frame, got {n_atoms} symbols."
        )


def cell_of(frame: Frame, atoms: ase.Atoms) -> Float[np.ndarray, "3 3"]:
    """Å, lattice vectors as rows: the frame's box, or the cell of `atoms` without one."""
    return atoms.cell.array if frame.box is None else np.asarray(frame.box, float).T


def positions_of(frame: Frame) -> Float[np.ndarray, "atoms 3"]:
    """Å. A frame with a box has fractional positions."""
    return frame.position if frame.box is None else frame.position @ np.asarray(frame.box, float).T


@contextlib.contextmanager
def naming(path) -> Generator[None]:
    """Raise any `OSError` again with the file's name and the remedy."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        message = (
            f"{path} cannot be written: {reason}. "
            "The last restart file is complete: free disk space and resume from it"
        )
        raise OSError(error.errno, message) from error


class _Text:
    """A text file to append to, truncated where a run resumes.

    It is unbuffered, so that closing it writes nothing.
    """

    def __init__(self, path, append: bool, until_step: int | None, records: Callable):
        check_until_step(append, until_step)
        self._path = Path(path)
        # Closed by `close`.
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115
        try:
            lock_file(self._file, path)
            if until_step is not None:
                _truncate(self._path, until_step, records)
            elif not append and self.size():
                self._file.truncate(0)
        except BaseException:
            self.close()
            raise

    def size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def write(self, text: str) -> None:
        unwritten = memoryview(text.encode())
        with naming(self._path):
            while unwritten:
                unwritten = unwritten[self._file.write(unwritten) :]

    def close(self) -> None:
        self._file.close()


def check_until_step(append: bool, until_step: int | None) -> None:
    """Raise `ValueError` where `until_step` is given without `append`."""
    if until_step is not None and not append:
        raise ValueError(f"until_step must be given with append=True, got until_step={until_step} alone.")


def _truncate(
    path: Path, until_step: int, records: Callable[[BinaryIO, Path], Iterator[tuple[int, int]]]
) -> None:
    """Drop records beyond a step and an incomplete last one.

    The file is read line by line and truncated by one system call.
    """
    end = 0
    with open(path, "rb") as file:
        for step, offset in records(file, path):
            if step > until_step:
                break
            end = offset
    if end < path.stat().st_size:
        os.truncate(path, end)


def _xyz_frames(file: BinaryIO, path: Path) -> Iterator[tuple[int, int]]:
    """Step and end (bytes) of every complete frame."""
    while (count := file.readline()).endswith(b"\n"):
        if not (comment := file.readline()).endswith(b"\n"):
            return
        step = re.search(rb"(?:^|\s)step=(\d+)(?:\s|$)", comment)
        if not count.strip().isdigit() or step is None:
            raise ValueError(
                f"{path} must have step=... in the comment line of each frame to be truncated, "
                f"got {count + comment!r:.80}."
            )
        last = deque(enumerate(islice(file, int(count)), 1), maxlen=1)
        n, line = last.pop() if last else (0, b"")
        if n < int(count) or (n and not line.endswith(b"\n")):
            return
        yield int(step[1]), file.tell()


def _csv_rows(file: BinaryIO, path: Path) -> Iterator[tuple[int, int]]:
    """Step and end (bytes) of every complete line; the header has step -1."""
    if file.readline().endswith(b"\n"):
        yield -1, file.tell()
    while (line := file.readline()).endswith(b"\n"):
        step = line.split(b",")[Log._fields.index("step")]
        if not step.isdigit():
            raise ValueError(f"{path} must have a step in each line to be truncated, got {line!r:.80}.")
        yield int(step), file.tell()


def _csv_line(values: Sequence) -> str:
    line = io.StringIO()
    csv.writer(line).writerow(values)
    return line.getvalue()


def _first_line(path) -> str:
    if not Path(path).exists():
        return ""
    with open(path, "rb") as file:
        return file.readline().decode(errors="replace")


class Drift(NamedTuple):
    """A rate of change of energy and its standard error, meV / atom / ps."""

    slope: float
    standard_error: float


def drift(
    time_ps: Real[ArrayLike, " n"] | Sequence,
    energy_eV: Real[ArrayLike, " n"] | Sequence,
    n_atoms: int,
    *,
    n_blocks: int = 10,
) -> Drift:
    """Rate at which a total energy drifts.

    Energies along a trajectory are correlated, so a fit to all of them
    underestimates the error. They are averaged over `n_blocks` consecutive
    blocks of equal length, which should exceed the correlation time, and a line
    is fitted to the block means (t_b, E_b):

        slope = sum (t_b - <t>)(E_b - <E>) / sum (t_b - <t>)^2
        error = sqrt( sum residual_b^2 / (n_blocks - 2) / sum (t_b - <t>)^2 )

    With 10 blocks the error has 8 degrees of freedom.

    Args:
        time_ps: evenly spaced.
        energy_eV: total energy of the system.
        n_atoms: number of atoms.
        n_blocks: at least 3.

    Returns:
        Slope and its standard error, meV / atom / ps.

    Raises:
        ValueError: shapes differ, values are not finite, or there are fewer
            than two energies per block.

    >>> import numpy as np
    >>> t = np.linspace(0.0, 5.0, 100)
    >>> slope, error = drift(t, 0.02 * t, n_atoms=10)
    >>> print(round(slope, 6), error < 1e-9)
    2.0 True
    """
    t, e = np.asarray(time_ps, float), np.asarray(energy_eV, float)
    if t.ndim != 1 or t.shape != e.shape:
        raise ValueError(
            f"time_ps and energy_eV must be vectors of one length, got shapes {t.shape} and {e.shape}."
        )
    if not (np.isfinite(t).all() and np.isfinite(e).all()):
        raise ValueError("time_ps and energy_eV must be finite, got NaN or infinity.")
    if n_atoms < 1:
        raise ValueError(f"n_atoms must be at least 1, got {n_atoms}.")
    if n_blocks < 3:
        raise ValueError(f"n_blocks must be at least 3, got {n_blocks}.")
    length = len(t) // n_blocks
    if length < 2:
        raise ValueError(f"time_ps must have at least 2 values per block, {2 * n_blocks}, got {len(t)}.")
    # The first frames, which do not fill a block, are left out.
    t, e = (x[len(x) - n_blocks * length :].reshape(n_blocks, length).mean(axis=1) for x in (t, e - e.mean()))
    dt, de = t - t.mean(), e - e.mean()
    slope = np.sum(dt * de) / np.sum(dt**2)
    residual = de - slope * dt
    error = np.sqrt(np.sum(residual**2) / (n_blocks - 2) / np.sum(dt**2))
    return Drift(1e3 * float(slope) / n_atoms, 1e3 * float(error) / n_atoms)
