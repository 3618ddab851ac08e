"""Interactive 3D view of a structure or a trajectory in a notebook.

It uses 3Dmol.js through py3Dmol, which the extra `notebooks` installs, and works in
Jupyter, in Colab and as an HTML page (`write_html`). The browser downloads 3Dmol.js;
without a network connection the view is empty.
"""

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, covalent_radii
from ase.data.colors import jmol_colors
from jax.typing import ArrayLike
from jaxtyping import Shaped
from matplotlib.colors import to_hex

from moe_md.checks import check_count, check_value
from moe_md.plots.plots import CHEAP, ELEMENTS, EXPENSIVE, FAINT

if TYPE_CHECKING:
    import py3Dmol

EXPERTS = (EXPENSIVE, CHEAP, "#6fa287", "#a3729b")  # by number; the last two for further experts
SIZE = 0.95  # radius of spheres over covalent radius


def view(
    atoms: Atoms | Sequence[Atoms],
    values: Shaped[ArrayLike, "*frames atoms"] | Sequence | None = None,
    *,
    low: float = 0.0,
    high: float | None = None,
    label: str = "gate of the expensive expert",
    names: Sequence[str] = ("expensive expert", "cheap expert"),
    keep: Sequence[str] = ("C", "O"),
    tilt: float = -75.0,
    width: int = 640,
    height: int = 440,
    interval_ms: int = 100,
) -> "py3Dmol.view":
    """Atoms as spheres, coloured by expert or by a value for each atom, with the edges of the cell.

    Args:
        atoms: a structure, or frames with the same symbols, which are shown in a
            loop. Positions are not wrapped. The cell drawn is that of the first
            frame.
        values: of each atom, or of each frame and atom. Integers are experts, 0 the
            most expensive. Floats, such as a gate or a force error, are shown on a
            colour scale from `low` to `high`. None: colours of elements.
        low, high: values at the ends of the colour scale, in the unit of `values`;
            `high` is by default 1, or the largest value if that is above 1.
        label: name of the values, for the legend.
        names: names of the experts, for the legend.
        keep: chemical symbols that keep the colour of their element.
        tilt: degrees, rotation about the screen's x axis; at 0 z points to the
            viewer, at -90 up.
        width, height: pixels.
        interval_ms: time between frames.

    Returns:
        A `py3Dmol.view`. A notebook shows it as the last line of a cell or with
        `.show()`; `.write_html(path)` writes a page.

    Raises:
        ImportError: py3Dmol is not installed.
        ValueError: there are no frames or atoms, frames have different symbols,
            shapes do not match, a number is not finite, or `high` is not above
            `low`.

    >>> from ase.build import fcc111
    >>> slab = fcc111("Pt", (2, 2, 3), vacuum=6.0)
    >>> picture = view(slab, (slab.positions[:, 2] < 8.0).astype(int))
    >>> picture.startjs.count("addLine")
    12
    """
    frames = _checked_frames(atoms)
    symbols = frames[0].get_chemical_symbols()
    known = sorted(set(symbols))
    for name, value in (("width", width), ("height", height), ("interval_ms", interval_ms)):
        check_count(name, value, 1)
    check_value("tilt", tilt, float)
    column, scheme, legend = _colours(values, len(frames), len(symbols), low, high, label, names)
    page = _py3dmol().view(width=width, height=height)
    xyz = "".join(_xyz(frame, symbols, numbers) for frame, numbers in zip(frames, column))
    page.addModelsAsFrames(xyz, "xyz", {"assignBonds": False})
    for symbol in known:
        by_element = scheme is None or symbol in keep
        colour = {"color": _element_colour(symbol)} if by_element else {"colorscheme": scheme}
        page.setStyle({"elem": symbol}, {"sphere": {"radius": _radius(symbol), **colour}})
    for start, end in _edges(frames[0].cell.array):
        page.addLine({"start": _point(start), "end": _point(end), "color": FAINT})
    legend = [
        *legend,
        *((symbol, _element_colour(symbol)) for symbol in known if scheme is None or symbol in keep),
    ]
    for line, (text, colour) in enumerate(legend):
        position = {"x": 8, "y": 8 + 22 * line, "z": 0}
        style = {
            "fontSize": 12,
            "fontColor": "white" if _is_dark(colour) else "black",
            "backgroundColor": colour,
        }
        page.addLabel(text, {"position": position, "useScreen": True, "backgroundOpacity": 0.9, **style})
    page.zoomTo()
    page.rotate(float(tilt), "x")
    if len(frames) > 1:
        page.animate({"loop": "forward", "interval": int(interval_ms)})
    return page


def _checked_frames(atoms) -> list[Atoms]:
    """The frames as a list; `ValueError` where they do not fit one another."""
    frames = [atoms] if isinstance(atoms, Atoms) else list(atoms) if isinstance(atoms, (list, tuple)) else []
    if not frames or not all(isinstance(frame, Atoms) and len(frame) for frame in frames):
        raise ValueError(
            f"atoms must be ASE Atoms of one atom or more, or a list of them, got {atoms!r:.80}."
        )
    for index, frame in enumerate(frames):
        if not np.array_equal(frame.numbers, frames[0].numbers):
            raise ValueError(
                "atoms must be frames of the same symbols, "
                f"got {frames[0].symbols} and, frame {index}, {frame.symbols}."
            )
        if not (np.isfinite(frame.positions).all() and np.isfinite(frame.cell.array).all()):
            raise ValueError(
                f"atoms must have finite positions and cell, got NaN or infinity in frame {index}."
            )
    return frames


def _colours(values, n_frames: int, n_atoms: int, low, high, label, names):
    """Values on the colour scale, `[n_frames, n_atoms]`; 3Dmol's colour scheme; legend entries."""
    if values is None:
        return np.zeros((n_frames, n_atoms), int), None, []
    values = np.asarray(values)
    if values.dtype.kind not in "iuf" or values.shape not in ((n_atoms,), (n_frames, n_atoms)):
        raise ValueError(
            f"values must be numbers of shape [{n_atoms}] or [{n_frames}, {n_atoms}], "
            f"got shape {values.shape} and dtype {values.dtype}."
        )
    if not np.isfinite(values).all():
        raise ValueError("values must be finite, got NaN or infinity.")
    column = np.broadcast_to(values, (n_frames, n_atoms))
    if values.dtype.kind in "iu":
        least, most = int(values.min()), int(values.max())
        if least < 0 or most >= len(EXPERTS):
            raise ValueError(
                f"values of experts must lie between 0 and {len(EXPERTS) - 1}, got {least} to {most}."
            )
        if len(names) <= most:
            raise ValueError(f"names must have one entry per expert, at least {most + 1}, got {list(names)}.")
        scheme = {"prop": "dx", "map": {str(k): EXPERTS[k] for k in range(most + 1)}}
        return column, scheme, [(names[k], EXPERTS[k]) for k in np.unique(values)]
    high = max(1.0, float(values.max())) if high is None else high
    check_value("low", low, float)
    check_value("high", high, float)
    if not high > low:
        raise ValueError(f"high must be above low, got {high} and {low}.")
    # 3Dmol reaches the second of two colours half way between `min` and `max`: 1 of 2.
    scheme = {"prop": "dx", "gradient": "linear", "min": 0, "max": 2, "colors": [CHEAP, EXPENSIVE]}
    scaled = np.clip((column - low) / (high - low), 0.0, 1.0)
    return scaled, scheme, [(f"{high:.3g} {label}", EXPENSIVE), (f"{low:.3g}", CHEAP)]


def _xyz(frame: Atoms, symbols: Sequence[str], numbers: np.ndarray) -> str:
    """A frame as XYZ text; the value of an atom is in the column that 3Dmol reads as `dx`."""
    lines = [
        f"{s} {x:.4f} {y:.4f} {z:.4f} {n:.4g} 0 0"
        for s, (x, y, z), n in zip(symbols, frame.positions, numbers)
    ]
    return "\n".join([str(len(lines)), "", *lines, ""])


def _edges(cell: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Both ends of each edge of the cell; zero lattice vectors have no edges."""
    vectors = [v for v in cell if np.linalg.norm(v) > 0]
    found = []
    for n, vector in enumerate(vectors):
        others = vectors[:n] + vectors[n + 1 :]
        for corner in product((0.0, 1.0), repeat=len(others)):
            start = sum((k * v for k, v in zip(corner, others)), np.zeros(3))
            found.append((start, start + vector))
    return found


def _point(position: np.ndarray) -> dict[str, float]:
    return dict(zip("xyz", np.round(position, 4).tolist()))


def _element_colour(symbol: str) -> str:
    return ELEMENTS.get(symbol) or to_hex(jmol_colors[atomic_numbers[symbol]])


def _radius(symbol: str) -> float:
    return round(SIZE * float(covalent_radii[atomic_numbers[symbol]]), 3)


def _is_dark(colour: str) -> bool:
    red, green, blue = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
    return 0.3 * red + 0.6 * green + 0.1 * blue < 110


def _py3dmol():
    try:
        import py3Dmol
    except ImportError as error:
        raise ImportError(
            "view needs py3Dmol, which is not installed: pip install 'moe_md[notebooks]'"
        ) from error
    return py3Dmol
