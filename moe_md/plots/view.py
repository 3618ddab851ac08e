"""A structure or a trajectory in three dimensions, to be turned by hand in a notebook.

Drawn by 3Dmol.js through py3Dmol, which comes with the extra `notebooks`; it
works in Jupyter, in Colab, and as a page of its own (`write_html`). The browser
fetches 3Dmol.js: without a network the picture stays empty.
"""

from collections.abc import Sequence
from itertools import product

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, covalent_radii
from ase.data.colors import jmol_colors
from matplotlib.colors import to_hex

from moe_md.checks import check_count, check_value
from moe_md.plots.plots import CHEAP, ELEMENTS, EXPENSIVE, FAINT

EXPERTS = (EXPENSIVE, CHEAP, "#6fa287", "#a3729b")  # of further ones, if any
SIZE = 0.95  # of covalent radii


def view(
    atoms: Atoms | Sequence[Atoms],
    values=None,
    *,
    low: float = 0.0,
    high: float | None = None,
    label: str = "weight of the expensive expert",
    names: Sequence[str] = ("expensive expert", "cheap expert"),
    keep: Sequence[str] = ("C", "O"),
    tilt: float = -75.0,
    width: int = 640,
    height: int = 440,
    interval_ms: int = 100,
):
    """Atoms as spheres, coloured by expert or by a number of each, with the edges of the cell.

    Args:
        atoms: a structure, or frames of one (the same symbols), which are shown
            one after the other, over and over. Positions are taken as they are;
            the cell drawn is that of the first frame.
        values: `[n_atoms]` or `[n_frames, n_atoms]`. Whole numbers are experts,
            0 the most expensive; others are shades from `low` to `high`: a
            weight, a force error. None: colours of elements.
        low, high: values at the ends of the scale, in the units of `values`;
            `high` by default 1 where no value is beyond, else the largest.
        label: what the shades are, for the legend.
        names: of the experts, for the legend.
        keep: chemical symbols that keep the colour of their element.
        tilt: degrees by which the picture is turned about its x axis; at 0 z
            points to the viewer, at -90 up.
        width, height: pixels.
        interval_ms: time from frame to frame.

    Returns:
        A `py3Dmol.view`: shown where it is a cell's last line, or by `.show()`;
        `.write_html(path)` writes a page.

    Raises:
        ImportError: py3Dmol is not installed.
        ValueError: there are no frames or atoms, frames are of different
            symbols, shapes do not match, a number is not finite, or the scale
            has no width.

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
    text = "".join(_xyz(frame, symbols, numbers) for frame, numbers in zip(frames, column))
    page.addModelsAsFrames(text, "xyz", {"assignBonds": False})
    for symbol in known:
        own = scheme is None or symbol in keep
        colour = {"color": _of_element(symbol)} if own else {"colorscheme": scheme}
        page.setStyle({"elem": symbol}, {"sphere": {"radius": _radius(symbol), **colour}})
    for start, end in _edges(frames[0].cell.array):
        page.addLine({"start": _point(start), "end": _point(end), "color": FAINT})
    legend = [
        *legend,
        *((symbol, _of_element(symbol)) for symbol in known if scheme is None or symbol in keep),
    ]
    for row, (words, colour) in enumerate(legend):
        place = {"x": 8, "y": 8 + 22 * row, "z": 0}
        look = {
            "fontSize": 12,
            "fontColor": "white" if _is_dark(colour) else "black",
            "backgroundColor": colour,
        }
        page.addLabel(words, {"position": place, "useScreen": True, "backgroundOpacity": 0.9, **look})
    page.zoomTo()
    page.rotate(float(tilt), "x")
    if len(frames) > 1:
        page.animate({"loop": "forward", "interval": int(interval_ms)})
    return page


def _checked_frames(atoms) -> list[Atoms]:
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
    """A number for each atom of each frame, 3Dmol's scheme of colours, and the legend's words and colours."""
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
            raise ValueError(f"names must be of each expert, at least {most + 1}, got {list(names)}.")
        scheme = {"prop": "dx", "map": {str(k): EXPERTS[k] for k in range(most + 1)}}
        return column, scheme, [(names[k], EXPERTS[k]) for k in np.unique(values)]
    high = max(1.0, float(values.max())) if high is None else high
    check_value("low", low, float)
    check_value("high", high, float)
    if not high > low:
        raise ValueError(f"high must be above low, got {high} and {low}.")
    # 3Dmol's linear scale of two colours ends half way: shades are given from 0 to 1, of 2.
    scheme = {"prop": "dx", "gradient": "linear", "min": 0, "max": 2, "colors": [CHEAP, EXPENSIVE]}
    shades = np.clip((column - low) / (high - low), 0.0, 1.0)
    return shades, scheme, [(f"{high:.3g} {label}", EXPENSIVE), (f"{low:.3g}", CHEAP)]


def _xyz(frame: Atoms, symbols: Sequence[str], numbers: np.ndarray) -> str:
    """A frame as XYZ; what colours an atom goes where 3Dmol looks for x of a displacement."""
    lines = [
        f"{s} {x:.4f} {y:.4f} {z:.4f} {n:.4g} 0 0"
        for s, (x, y, z), n in zip(symbols, frame.positions, numbers)
    ]
    return "\n".join([str(len(lines)), "", *lines, ""])


def _edges(cell: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Both ends of each edge that the lattice vectors span; vectors that are zero span none."""
    vectors = [v for v in cell if np.linalg.norm(v) > 0]
    found = []
    for n, vector in enumerate(vectors):
        others = vectors[:n] + vectors[n + 1 :]
        for on in product((0.0, 1.0), repeat=len(others)):
            start = sum((k * v for k, v in zip(on, others)), np.zeros(3))
            found.append((start, start + vector))
    return found


def _point(place: np.ndarray) -> dict[str, float]:
    return dict(zip("xyz", np.round(place, 4).tolist()))


def _of_element(symbol: str) -> str:
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
