"""Text of extended XYZ files, read by ASE, understood whole or refused.

ASE's reader knows the keys `Lattice`, `Properties` and `pbc` in this spelling only, takes a frame without
them for a cluster, and refuses a whole file for one label that it cannot parse. Here headers are brought
to ASE's spelling first, lines are compared with what `Properties` announces, and labels are kept as the
file has them: `reading` decides which of them are needed.

Format: https://github.com/libAtoms/extxyz
"""

import re
import warnings
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from ase.io.extxyz import key_val_str_to_dict, read_xyz
from ase.io.formats import open_with_compression

PLAIN_PROPERTIES = "species:S:1:pos:R:3"  # of a file that names no columns
COLUMNS = {
    **dict.fromkeys(("species", "symbol", "symbols", "element", "elements"), "species"),
    **dict.fromkeys(("pos", "position", "positions"), "pos"),
    "move_mask": "move_mask",
}
STRUCTURE = ("species", "pos", "Z", "move_mask")  # columns that ASE interprets
# Words for the cell and for periodicity which the format does not know.
CELL_WORDS = (
    "cell",
    "box",
    "unit_cell",
    "unitcell",
    "supercell",
    "lattice_vectors",
    "cell_vectors",
    "boxsize",
)
PERIODIC_WORDS = ("periodic", "periodicity", "boundary", "boundaries", "boundary_conditions", "bc")
TRUE = ("t", "true", ".true.", "1", "yes", "y", "on", "p", "periodic")
FALSE = ("f", "false", ".false.", "0", "no", "n", "off", "open")
LOGICAL = {"T": True, "F": False, "True": True, "False": False}  # of columns, as ASE
# A header is pairs `key=value`, and keys alone; values may be quoted, and quotes escaped.
_PART = r"""(?:\\.|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|\{[^}]*\}|\[[^\]]*\]|[^\s="'{\[\\])"""
PAIR = re.compile(rf"({_PART}+)(?:(\s*=\s*)((?:{_PART}|=)*))?")
MARK = "_"  # before the names of labels while ASE reads, so that it does not interpret them


def read_images(path: str | Path) -> list[Atoms]:
    """All frames of an extended XYZ file, which may be compressed (gz, bz2, xz).

    Keys and columns of the structure may have any case and order. Labels are
    entries of `info` and `arrays` under their names in the file; what cannot be
    parsed stays text.

    Args:
        path: the file, in UTF-8 (with or without a byte-order mark), UTF-16 with
            one, or Latin-1.

    Returns:
        ASE's atoms, in Å, without calculators.

    Raises:
        ValueError: the file is missing, empty, damaged or cut short, or a cell,
            periodicity or column is not understood. The message names the frame,
            counted from 0.
    """
    path = Path(path)
    lines = text_of(path).split("\n")
    whole = lines[-1] == ""  # the last line has its newline
    if not any(line.strip() for line in lines):
        raise ValueError(f"path must hold at least one frame, got the empty file {path}.")
    if whole:
        lines.pop()
    images = []
    ignored = 0
    for index, frame in enumerate(_frames(path, lines)):
        where = f"frame {index} of {path}"
        atoms, unnamed = _atoms(frame, where)
        images.append(atoms)
        ignored = max(ignored, unnamed)
    if not whole:
        _check_last_number(frame, path)
    if ignored:
        warnings.warn(
            f"{path} has up to {ignored} columns after the positions that are not read: no Properties names"
            " them.",
            stacklevel=3,
        )
    return images


def text_of(path: Path) -> str:
    """Text of a file, which may be compressed, in UTF-8, UTF-16 or Latin-1, whatever the locale.

    Line ends become newlines; other separators of lines stay inside their line.
    """
    if not path.is_file():
        raise ValueError(f"path must be an existing file, got {path}.")
    try:
        with open_with_compression(str(path), "rb") as file:
            content = file.read()
    except Exception as error:  # each compression has its own types
        raise ValueError(f"path must be a readable whole file, got {path}: {error}") from error
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = content.decode("utf-16", errors="replace")
    else:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = content.decode("latin-1")
    text = text.replace("\r\n", "\n")
    return text if "\n" in text else text.replace("\r", "\n")


def _frames(path: Path, lines: list[str]) -> Iterator[list[str]]:
    """Lines of each frame, after checking that all of them are there.

    ASE accepts an incomplete last frame and ignores frames after an empty line.
    """
    start = 0
    while start < len(lines) and lines[start].strip():
        count = lines[start].strip()
        if not (count.isascii() and count.isdigit() and len(count) < 12 and int(count) > 0):
            problem = f"line {start + 1} must be a number of atoms, at least 1, got {count!r:.80}"
            raise ValueError(f"path must be a whole extended XYZ file, got {path}: {problem}.")
        first, start = start, start + 2 + int(count)
        if start > len(lines):
            problem = f"it ends before the {count} atoms that line {first + 1} announces"
            raise ValueError(f"path must be a whole extended XYZ file, got {path}: {problem}.")
        while start < len(lines) and lines[start].lstrip().startswith("VEC"):  # lattice vectors may follow
            start += 1
        yield lines[first:start]
    if any(line.strip() for line in lines[start:]):
        raise ValueError(f"path must hold frames without a gap, got {path}: line {start + 1} is empty.")


class _Header(NamedTuple):
    """What a comment line says."""

    for_ase: dict  # Lattice (transposed cell, as ASE's parser has it), pbc and Properties, where given
    labels: dict  # all other entries
    columns: tuple[tuple[str, str, int], ...]  # name, type (S, R, I or L) and number of columns
    names_columns: bool  # whether the line has Properties


def _atoms(lines: list[str], where: str) -> tuple[Atoms, int]:
    """One frame, and the number of columns that its header does not name."""
    n_atoms = int(lines[0])
    header = _header(lines[1], where)
    unnamed = _check_columns(lines[2 : 2 + n_atoms], header, where)
    if len(lines) > 2 + n_atoms and len(header.for_ase) + header.names_columns > 1:
        raise ValueError(f"{where} must have a header with keys or lines VEC, not both: {lines[1]!r:.80}.")
    try:
        text = StringIO("\n".join(lines))
        (atoms,) = read_xyz(text, slice(0, 1), properties_parser=lambda _: dict(header.for_ase))
    except KeyError as error:
        raise ValueError(f"species of {where} must be chemical symbols, got {error}.") from error
    except Exception as error:  # ASE raises many types on damaged files
        raise ValueError(
            f"{where} must be whole extended XYZ: {type(error).__name__}: {error!s:.200}"
        ) from error
    assert isinstance(atoms, Atoms)
    if not ((atoms.numbers > 0) & (atoms.numbers < len(chemical_symbols))).all():
        raise ValueError(
            f"species of {where} must be chemical elements, got numbers {atoms.numbers.tolist()!s:.80}."
        )
    atoms.info = header.labels
    for name, kind, _ in header.columns:
        if name not in STRUCTURE:
            atoms.arrays[name] = _converted(atoms.arrays.pop(MARK + name), kind)
    return atoms, unnamed


def _header(text: str, where: str) -> _Header:
    """A comment line, its keys of the structure in ASE's spelling, whatever their case in the file."""
    if PAIR.sub("", text).strip():  # a quote without its partner
        if "=" in text:
            raise ValueError(f"header of {where} must have its quotes in pairs, got {text!r:.120}.")
        text = ""  # a comment in words
    given: dict[str, list[str]] = {}  # words alone, without a value, are no entries
    labels: dict = {}
    for key, equals, value in PAIR.findall(text):
        if equals:
            key = _unquoted(key)
            given.setdefault(key, []).append(_unquoted(value))
            # ASE refuses some values by their names, such as a stress of six numbers: it sees another name.
            labels[key] = key_val_str_to_dict(f"{MARK}={value}")[MARK] if _unquoted(value) else ""
    for key, values in given.items():
        if len(set(values)) > 1:
            labels[key] = " and ".join(values)  # text, which a label must not be
    found = {}
    for name in ("Lattice", "Properties", "pbc"):
        spelled = [key for key in given if key.lower() == name.lower()]
        values = [value for key in spelled for value in given[key]]
        if len(values) > 1:
            raise ValueError(f"{name} of {where} must be given once, got {' and '.join(values)!r:.120}.")
        if values:
            found[name] = values[0]
            labels.pop(spelled[0])
    _check_words(given, found, where)
    columns = _columns(found.get("Properties", PLAIN_PROPERTIES), where)
    for_ase: dict = {"Properties": _ase_properties(columns)}
    if "Lattice" in found:
        for_ase["Lattice"] = _cell(found["Lattice"], where).T
    if "pbc" in found:
        for_ase["pbc"] = _periodicity(found["pbc"], where)
    return _Header(for_ase, labels, columns, "Properties" in found)


def _unquoted(text: str) -> str:
    return text.strip().strip("\"'{}[]")


def _check_words(given: dict[str, list[str]], found: dict[str, str], where: str) -> None:
    """Raise on a cell or a periodicity under a name that extended XYZ does not have."""
    for key, values in given.items():
        if key.lower() in CELL_WORDS and "Lattice" not in found and re.search(r"\d", values[0]):
            raise ValueError(
                f'the cell of {where} must be Lattice="ax ay az bx by bz cx cy cz", got '
                f"{key}={values[0]!r:.80}."
            )
        if key.lower() in PERIODIC_WORDS and "pbc" not in found:
            raise ValueError(
                f'the periodicity of {where} must be pbc="T T F" or the like, got {key}={values[0]!r:.80}.'
            )


def _cell(text: str, where: str) -> np.ndarray:
    """`[3, 3]` Å, lattice vectors as rows."""
    try:
        values = np.array(re.findall(r"[^\s,]+", text), float)
    except ValueError:
        values = np.zeros(0)
    if values.size != 9:
        raise ValueError(
            f"Lattice of {where} must be 9 numbers, ax ay az bx by bz cx cy cz in Å, got {text!r:.120}."
        )
    return values.reshape(3, 3)


def _periodicity(text: str, where: str) -> list[bool]:
    """Three booleans from letters of either case, 0 and 1, or words; one holds for all directions."""
    words = re.findall(r"[^\s,;]+", text.lower())
    if len(words) == 1 and re.fullmatch("[tf01]{3}", words[0]):
        words = list(words[0])
    if len(words) not in (1, 3) or not set(words) <= {*TRUE, *FALSE}:
        raise ValueError(f'pbc of {where} must be three of T and F, such as pbc="T T F", got {text!r:.80}.')
    return [word in TRUE for word in (words if len(words) == 3 else words * 3)]


def _columns(text: str, where: str) -> tuple[tuple[str, str, int], ...]:
    """Name, type and size of each group of columns; those of the structure in ASE's spelling."""
    parts = text.split(":")
    names = [COLUMNS.get(name.lower(), name) for name in parts[::3]]
    described = dict(zip(names, zip(parts[1::3], parts[2::3])))
    whole = len(parts) % 3 == 0 and len(described) == len(names)
    typed = all(kind in tuple("SRIL") and re.fullmatch("[1-9][0-9]?", n) for kind, n in described.values())
    symbols = described.get("species") == ("S", "1") or described.get("Z") == ("I", "1")
    if not (whole and typed and symbols and described.get("pos") == ("R", "3")):
        raise ValueError(
            f"Properties of {where} must name each column once with its type, species:S:1 (or Z:I:1) and"
            f" pos:R:3 among them, got {text!r:.120}."
        )
    return tuple((name, kind, int(size)) for name, (kind, size) in described.items())


def _ase_properties(columns: tuple[tuple[str, str, int], ...]) -> str:
    """`Properties` for ASE: labels are text under marked names, so that it does not interpret them."""
    return ":".join(
        f"{name}:{kind}:{size}" if name in STRUCTURE else f"{MARK}{name}:S:{size}"
        for name, kind, size in columns
    )


def _check_columns(lines: list[str], header: _Header, where: str) -> int:
    """Raise where a line has other columns than the header names; the number of those that none names."""
    wanted = sum(size for _, _, size in header.columns)
    starts = np.cumsum([0, *(size for _, _, size in header.columns)])
    masks = [
        slice(start, start + size)
        for (name, kind, size), start in zip(header.columns, starts)
        if name == "move_mask" and kind == "L"
    ]
    unnamed = 0
    for number, line in enumerate(lines):
        words = line.split()
        if len(words) < wanted or (header.names_columns and len(words) > wanted):
            raise ValueError(
                f"atom {number} of {where} must have the {wanted} columns of Properties, got {len(words)} in"
                f" {line!r:.80}: the file was cut, or Properties is wrong."
            )
        unnamed = max(unnamed, len(words) - wanted)
        for columns in masks:
            if not set(words[columns]) <= set(LOGICAL):
                raise ValueError(
                    f"move_mask of atom {number} of {where} must be T or F, got {words[columns]}."
                )
    return unnamed


def _converted(column: np.ndarray, kind: str) -> np.ndarray:
    """A column of words as numbers or booleans; as it is where it does not hold them."""
    try:
        if kind == "L":
            return np.vectorize(LOGICAL.__getitem__, otypes=[bool])(column)
        return column.astype({"R": float, "I": int, "S": object}[kind])
    except (ValueError, KeyError, OverflowError):
        return column


def _check_last_number(lines: list[str], path: Path) -> None:
    """Raise where a file without a last newline ends inside a number.

    A number cut short still parses. If all other numbers of the frame have the same decimals and exponent,
    at least four characters of them, a last number that lacks some of these was cut.
    """
    words = [word for line in lines[2:] for word in line.split()]
    forms = {
        re.sub("[0-9]", "0", word.partition(".")[2]).replace("+", "-") for word in words[:-1] if "." in word
    }
    form = forms.pop() if len(forms) == 1 else ""
    last = re.sub("[0-9]", "0", words[-1].partition(".")[2]).replace("+", "-")
    if len(form) >= 4 and last != form and form.startswith(last):
        raise ValueError(
            f"path must be a whole file, got {path}: it ends inside the line {lines[-1]!r:.120}."
        )
