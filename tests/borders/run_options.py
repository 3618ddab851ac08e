"""Options of `moe-md run` and `export`, and what they must answer."""

from ase.build import fcc100

from moe_md.commands import main as cli


def options(folder, structure, **more):
    """Options of `moe-md run` or `export`: the checkpoint, a structure and planes, or other options."""
    more = more or {"region-lower": 0.0}
    chosen = {"checkpoint": folder / "model.msgpack", "structure": structure, **more}
    return [text for key, value in chosen.items() for text in (f"--{key}", value)]


def failure(capsys, *arguments, code=2):
    """The one line on stderr of a command that must fail."""
    assert cli.main([str(a) for a in arguments]) == code
    err = capsys.readouterr().err
    last = [line for line in err.splitlines() if line.startswith("moe-md: error: ")]
    assert len(last) == 1 and "Traceback" not in err, err
    return last[0]


def slab(**kwargs):
    """Four layers of Pt in a right-angled cell, 16 atoms."""
    return fcc100("Pt", (2, 2, 4), a=3.92, vacuum=6.0, **kwargs)
