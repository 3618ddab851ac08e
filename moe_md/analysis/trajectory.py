"""Trajectories on disk, and how well they conserve energy.

Reporters for `moe_md.simulate.run`: each frame is on disk, whole, when the
reporter returns.
"""

import csv
import io
from pathlib import Path
from typing import NamedTuple, Sequence

import ase
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.extxyz import write_extxyz

from moe_md.checkpoint import write_atomic
from moe_md.simulate import Frame, Log, State


class XYZWriter:
    """Frames as extended XYZ, as ASE reads it.

    Energy, forces, momenta (from ASE's masses), the expert of each atom, and
    `step` and `time_ps` in the comment line.

    Args:
        path: file to write.
        symbols: `[n_atoms]` chemical symbols.
        cell: `[3, 3]` Å, lattice vectors as rows (ASE), or three edges.
        pbc: three booleans.
        expert: `[n_atoms]` int, written as the column `expert`.
        forces: write forces and momenta too.
        append: keep what the file holds.

    Raises:
        ValueError: `expert` is not one integer per atom.
    """

    def __init__(self, path, symbols: Sequence[str], cell, pbc, *, expert=None, forces=True, append=False):
        self._atoms = ase.Atoms(list(symbols), np.zeros((len(symbols), 3)), cell=np.asarray(cell, float), pbc=pbc)
        if expert is not None:
            if np.shape(expert) != (len(symbols),):
                raise ValueError(f"expert must have shape [{len(symbols)}], one per symbol, got {np.shape(expert)}.")
            self._atoms.arrays["expert"] = np.asarray(expert, int)
        self._forces = forces
        self._file = open(path, "a" if append else "w")

    def __call__(self, frame: Frame) -> None:
        atoms = self._atoms.copy()
        if frame.position.shape != (len(atoms), 3):
            raise ValueError(f"symbols must name {frame.position.shape[0]} atoms, as the frame has, got {len(atoms)}.")
        atoms.positions[:] = frame.position
        atoms.info = {"step": frame.step, "time_ps": frame.time_ps}
        results = {"energy": frame.potential}
        if self._forces:
            atoms.set_velocities(np.asarray(frame.velocity, float))
            results["forces"] = np.asarray(frame.force, float)
        atoms.calc = SinglePointCalculator(atoms, **results)
        text = io.StringIO()
        write_extxyz(text, [atoms])
        self._file.write(text.getvalue())
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class LogWriter:
    """Scalars of each frame as CSV, one column per field of `simulate.Log`.

    Args:
        path: file to write.
        append: keep what the file holds; no second header.
    """

    def __init__(self, path, *, append: bool = False):
        header = not (append and Path(path).exists() and Path(path).stat().st_size)
        self._file = open(path, "a" if append else "w", newline="")
        self._writer = csv.writer(self._file)
        if header:
            self._writer.writerow(Log._fields)
            self._file.flush()

    def __call__(self, frame: Frame) -> None:
        self._writer.writerow([getattr(frame, name) for name in Log._fields])
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class LastState:
    """Saves the last good state when a run fails: npz of plain arrays.

    Args:
        path: file to write; holds `position`, `velocity`, `step`, `time_ps`.
    """

    def __init__(self, path):
        self._path = Path(path)

    def __call__(self, frame: Frame) -> None:
        del frame

    def on_failure(self, state: State) -> None:
        """Write the file, whole or not at all."""
        content = io.BytesIO()
        np.savez(
            content,
            position=np.asarray(state.position),
            velocity=np.asarray(state.velocity),
            step=state.step,
            time_ps=state.time_ps,
        )
        write_atomic(self._path, content.getvalue())


class Drift(NamedTuple):
    """A rate, and how far to trust it; meV / atom / ps."""

    slope: float
    standard_error: float


def drift(time_ps, energy_eV, n_atoms: int, *, n_blocks: int = 10) -> Drift:
    """Rate at which a total energy drifts.

    Energies along a trajectory are correlated, so a fit over all of them
    claims too small an error. They are averaged over `n_blocks` consecutive
    blocks of equal length, each longer than the correlation time, and a line
    is fitted to the block means (t_b, E_b):

        slope = sum (t_b - <t>)(E_b - <E>) / sum (t_b - <t>)^2
        error = sqrt( sum residual_b^2 / (n_blocks - 2) / sum (t_b - <t>)^2 )

    With 10 blocks the error has 8 degrees of freedom.

    Args:
        time_ps: `[n]`, evenly spaced.
        energy_eV: `[n]`, total energy of the system.
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
        raise ValueError(f"time_ps and energy_eV must be vectors of one length, got shapes {t.shape} and {e.shape}.")
    if not (np.isfinite(t).all() and np.isfinite(e).all()):
        raise ValueError("time_ps and energy_eV must be finite, got NaN or infinity.")
    if n_atoms < 1:
        raise ValueError(f"n_atoms must be at least 1, got {n_atoms}.")
    if n_blocks < 3:
        raise ValueError(f"n_blocks must be at least 3, got {n_blocks}.")
    length = len(t) // n_blocks
    if length < 2:
        raise ValueError(f"time_ps must hold at least 2 values per block, {2 * n_blocks}, got {len(t)}.")
    # The oldest frames that fill no whole block are left out.
    t, e = (x[len(x) - n_blocks * length :].reshape(n_blocks, length).mean(axis=1) for x in (t, e - e.mean()))
    dt, de = t - t.mean(), e - e.mean()
    slope = np.sum(dt * de) / np.sum(dt**2)
    residual = de - slope * dt
    error = np.sqrt(np.sum(residual**2) / (n_blocks - 2) / np.sum(dt**2))
    return Drift(1e3 * float(slope) / n_atoms, 1e3 * float(error) / n_atoms)
