"""Printed words survive an ASCII terminal; files are UTF-8 whatever the locale."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ase.build import bulk
from command_line import moe_md
from programs import ROOT

from moe_md.commands import terminal
from moe_md.data import read_structure

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
SHOUT = """
import sys, warnings
from moe_md.commands import main as cli
from moe_md.commands import models
def command(settings, parsed, log):
    log("largest force 0.031 eV/Å, drift 1 ± 2 meV, \\u1e9e")
    warnings.warn("spheres of 3 Å → wider than 10 Å²")
    raise ValueError("radius must be positive (Å³), got −1.")
models.command = command
sys.exit(cli.main(["models"]))
"""


def ascii_program(code: str, *arguments, **environment) -> subprocess.CompletedProcess:
    """A Python program in a locale without UTF-8; its output as bytes."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("LANG", "LC_CTYPE", "PYTHONIOENCODING")}
    return subprocess.run(
        [sys.executable, "-c", f"exec({code!a})", *map(str, arguments)],
        env={**inherited, **ASCII, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
    )


@pytest.mark.parametrize("environment", [{}, {"PYTHONIOENCODING": "ascii"}], ids=["locale", "io"])
def test_lines_warnings_and_errors_degrade_readably(environment):
    done = ascii_program(SHOUT, **environment)
    assert done.returncode == 2, done.stderr
    assert done.stdout == b"largest force 0.031 eV/A, drift 1 +- 2 meV, \\u1e9e\n"
    assert done.stderr.splitlines() == [
        b"moe-md: warning: spheres of 3 A -> wider than 10 A^2",
        b"moe-md: error: radius must be positive (A^3), got -1.",
    ]


def test_help_survives_ascii():
    program = "import sys; from moe_md.commands.main import main; main(sys.argv[1:])"
    done = ascii_program(program, "run", "--help")
    assert done.returncode == 0, done.stderr
    assert b"--region-upper" in done.stdout and done.stdout.isascii() and b"\\x" not in done.stdout


def test_a_training_survives_ascii_and_its_files_are_utf8(folder, tmp_path):
    """Progress bar, table of errors, and a path that the locale cannot decode."""
    program = "import sys; from moe_md.commands.main import main; sys.exit(main(sys.argv[1:]))"
    out = tmp_path / "größe"
    done = ascii_program(program, "train", "--settings", folder / "train.toml", "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["step"] == 4  # the lines of a validation are on stderr
    assert b"step 4: " in done.stderr and b"meV/A" in done.stderr and done.stderr.isascii()
    assert str(out) in (out / "settings.toml").read_text(encoding="utf-8")


def test_every_character_of_the_package_has_a_spelling():
    """Of the strings of the code, except names of authors."""
    missing = set()
    for path in (ROOT / "moe_md").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                missing |= {c for c in node.value if not c.isascii() and c not in terminal.READABLE}
    assert missing <= set("áäéóöüß"), missing


def test_the_settings_of_the_streams_are_restored(capsys):
    before = sys.stdout.errors, sys.stderr.errors
    with terminal.readable_output():
        assert sys.stdout.errors == sys.stderr.errors == terminal.HANDLER
    assert (sys.stdout.errors, sys.stderr.errors) == before
    assert moe_md(capsys, "models")[0] == 0


def test_structures_are_read_whatever_the_locale(tmp_path):
    """Comments of other encodings than the locale's refuse no file."""
    path = tmp_path / "POSCAR"
    bulk("Pt").write(path)
    lines = path.read_text(encoding="utf-8").split("\n")
    for encoding in ("utf-8", "latin-1"):
        path.write_text("\n".join([lines[0] + " Größe in Å", *lines[1:]]), encoding=encoding)
        assert read_structure(path).get_chemical_formula() == "Pt"
    program = "import sys; from moe_md.data import read_structure; print(read_structure(sys.argv[1]).symbols)"
    done = ascii_program(program, path)
    assert done.stdout == b"Pt\n", done.stderr


TEXT = {"open", "read_text", "write_text", "fdopen"}


def without_encoding(source: str) -> list[int]:
    """Lines of calls that open a text file in the encoding of the locale."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        arguments = [leaf for argument in node.args for leaf in ast.walk(argument)]
        modes = [a.value for a in arguments if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        binary = name in ("open", "fdopen") and any("b" in mode for mode in modes)
        opener = ast.unparse(node.func) not in ("Image.open", "webbrowser.open", "os.open")
        if name in TEXT and opener and not binary and "encoding" not in [k.arg for k in node.keywords]:
            found.append(node.lineno)
    return found


def test_text_files_have_an_encoding():
    files = [p for name in ("moe_md", "benchmarks") for p in (ROOT / name).rglob("*.py")]
    assert len(files) > 100
    lines = {str(p.relative_to(ROOT)): without_encoding(Path(p).read_text(encoding="utf-8")) for p in files}
    assert {name: n for name, n in lines.items() if n} == {}
    assert without_encoding("path.read_text()\nopen(a, 'rb')\nopen(a, 'w')\nos.fdopen(1, 'w')") == [1, 3, 4]
