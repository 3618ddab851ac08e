"""Malformed structures, labelled frames, settings files and checkpoints, as people have them.

Each table maps what is wrong to the content of the file.
"""

import gzip
import io
import json
import pickle

import msgpack
import numpy as np

CUBE = 'Lattice="6 0 0 0 6 0 0 0 6"'
POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
PAGE = "<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head></html>\n"


def atoms(header: str = f"{CUBE} energy=-1.0", *lines: str, count: int | str | None = None) -> str:
    """Extended XYZ of one frame; the atoms default to two of Pt."""
    lines = lines or ("Pt 0 0 0", "Pt 2.8 0 0")
    return "\n".join((str(len(lines) if count is None else count), header, *lines)) + "\n"


def packed(content: bytes) -> bytes:
    """The first half of a compressed file."""
    whole = gzip.compress(content)
    return whole[: len(whole) // 2]


# Name and content of files that `run`, `export`, `train`, `evaluate`, `validate` and `init` read.
FRAMES = {
    "blank lines": ("a.xyz", "\n\n\n"),
    "random bytes": ("a.xyz", bytes(range(256)) * 8),
    "a page of an error": ("a.extxyz", PAGE),
    "a pointer to a large file": ("a.extxyz", POINTER),
    "a download that broke off": ("a.xyz.gz", packed(atoms().encode() * 40)),
    "a compressed file without its ending": ("a.xyz", gzip.compress(atoms().encode())),
    "settings": ("a.xyz", "[run]\nsteps = 3\n"),
    "JSON": ("a.xyz", json.dumps({"positions": [[0, 0, 0]], "numbers": [78]})),
    "no atoms": ("a.xyz", atoms(count=0)),
    "fewer atoms than said": ("a.xyz", atoms(count=3)),
    "more atoms than said": ("a.xyz", atoms(count=1)),
    "a number of atoms with decimals": ("a.xyz", atoms(count="2.0")),
    "commas as decimal points": ("a.xyz", atoms(f"{CUBE} energy=-1.0", "Pt 0,0 0,0 0,0", "Pt 2,8 0,0 0,0")),
    "commas between columns": ("a.xyz", atoms(f"{CUBE} energy=-1.0", "Pt,0,0,0", "Pt,2.8,0,0")),
    "a position that is no number": ("a.xyz", atoms(f"{CUBE} energy=-1.0", "Pt nan 0 0", "Pt 2.8 0 0")),
    "an infinite position": ("a.xyz", atoms(f"{CUBE} energy=-1.0", "Pt 0 0 1e999", "Pt 2.8 0 0")),
    "a printed overflow": ("a.xyz", atoms(f"{CUBE} energy=-1.0", "Pt 0 0 ******", "Pt 2.8 0 0")),
    "a species that does not exist": ("a.xyz", atoms(f"{CUBE} energy=-1.0", "Pr3 0 0 0", "Pt 2.8 0 0")),
    "labels of a force field": ("a.xyz", atoms(f"{CUBE} energy=-1.0", "Pt_s 0 0 0", "C_co 2.8 0 0")),
    "an atom without a species": ("a.xyz", atoms(f"{CUBE} energy=-1.0", "0 0 0", "Pt 2.8 0 0")),
    "one atom twice": ("a.xyz", atoms(f"{CUBE} energy=-1.0", "Pt 1 1 1", "Pt 1 1 1")),
    "one atom twice across the boundary": ("a.xyz", atoms(f"{CUBE} energy=-1.0", "Pt 0 1 1", "Pt 6 1 1")),
    "a cell without volume": ("a.xyz", atoms('Lattice="6 0 0 0 6 0 6 6 0" energy=-1.0')),
    "a cell of lengths and angles": ("a.xyz", atoms('Lattice="6 6 6 90 90 90" energy=-1.0')),
    "a cell that is no number": ("a.xyz", atoms('Lattice="6 0 0 0 6 0 0 0 nan" energy=-1.0')),
    "periodic without a cell": ("a.xyz", atoms('pbc="T T T" energy=-1.0')),
    "two periodicities of three": ("a.xyz", atoms(f'{CUBE} pbc="T T" energy=-1.0')),
    "a column that is announced and missing": (
        "a.xyz",
        atoms(f"{CUBE} energy=-1.0 Properties=species:S:1:pos:R:3:forces:R:3"),
    ),
    "a quote that does not end": ("a.xyz", atoms('Lattice="6 0 0 0 6 0 0 0 6 energy=-1.0')),
}

# Labels, which `train`, `evaluate` and `validate` read.
LABELS = {
    "an energy that is no number": atoms(f"{CUBE} energy=nan"),
    "an energy with its unit": atoms(f"{CUBE} energy=-3.2eV"),
    "two energies": atoms(f'{CUBE} energy="-3.2 -3.3"'),
    "a stress of three numbers": atoms(f'{CUBE} energy=-3.2 stress="1 2 3"'),
    "forces of two components": atoms(
        f"{CUBE} energy=-3.2 Properties=species:S:1:pos:R:3:forces:R:2", "Pt 0 0 0 1 2", "Pt 2.8 0 0 1 2"
    ),
    "forces that overflowed": atoms(
        f"{CUBE} Properties=species:S:1:pos:R:3:forces:R:3", "Pt 0 0 0 1 2 ***", "Pt 2.8 0 0 1 2 3"
    ),
}

# Structures of other programs, which `run` and `export` read.
STRUCTURES = {
    "POSCAR of fewer atoms": ("POSCAR", "x\n1.0\n6 0 0\n0 6 0\n0 0 6\nPt\n3\nDirect\n0 0 0\n0.4 0 0\n"),
    "POSCAR with words in the cell": ("POSCAR", "x\n1.0\n6 0 0\n0 a 0\n0 0 6\nPt\n1\nDirect\n0 0 0\n"),
    "CIF without atoms": ("a.cif", "data_x\n_cell_length_a 5\n_cell_length_b 5\n_cell_length_c 5\n"),
    "CIF of text": ("a.cif", "see attachment\n"),
    "PDB without atoms": ("a.pdb", "HEADER    NOTHING\nEND\n"),
    "a database that is none": ("a.db", "SQLite format 4"),
    "a trajectory cut short": ("a.traj", b"- of UlmASE-Trajectory\x00\x00\x00"),
    "JSON without atoms": ("a.json", "{}"),
    "a data file of LAMMPS that is empty": ("a.lammps-data", "\n\n"),
    "an unknown format": ("a.pt", "hello"),
}

SETTINGS = {
    "a table twice": "[run]\nsteps = 1\n[run]\nsteps = 2\n",
    "a key of another table": "[run]\nmax_atoms = 3\n[training]\nensemble = 'nve'\n",
    "a misspelt key": "[run]\ntimestep = 1.0\n[training]\nstep = 3\n[bench]\nlayer = 4\n[demo]\nlayer = 4\n"
    "[validate]\nstrain = 3\n[data]\nenergy = 'e'\n",
    "a misspelt table": "[runs]\nsteps = 3\n",
    "no quotes": "[data]\ndata = frames.xyz\n[run]\nstructure = slab.xyz\n",
    "YAML": "run:\n  steps: 3\n",
    "INI": "[run]\nsteps: 3\n",
    "JSON": json.dumps({"run": {"steps": 3}}),
    "bytes": b"\x00\xff\xfe",
    "a page of an error": PAGE,
}

CHECKPOINTS = {
    "nothing": b"",
    "text": "best model\n",
    "a page of an error": PAGE,
    "a pointer to a large file": POINTER,
    "a pickle": pickle.dumps({"params": [1, 2]}),
    "a list": msgpack.packb([1, 2, 3]),
    "another dict": msgpack.packb({"model": "x", "epoch": 3}),
    "a zip file": b"PK\x03\x04" + bytes(60),
}


def numpy_archive() -> bytes:
    """A file of `numpy.savez`."""
    stream = io.BytesIO()
    np.savez(stream, params=np.zeros(3))
    return stream.getvalue()


CHECKPOINTS["an archive of arrays"] = numpy_archive()
