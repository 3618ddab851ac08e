"""What is released can be installed: an sdist, the wheel made of it, and the command that it brings."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

PROGRAM = """
import sys
from pathlib import Path
import moe_md as mm
from moe_md.data import load_dataset, ptco_pbe
assert Path(mm.__file__).is_relative_to(sys.prefix), mm.__file__
assert mm.load("ptco").experts[0].species == ("Pt", "C", "O")
assert load_dataset(ptco_pbe()).frames[0].energy < 0
assert (Path(mm.__file__).parent / "py.typed").is_file()
print("installed")
"""


def run(*command, cwd: Path | None = None) -> str:
    """What a program printed, which must end without an error; nothing of the checkout is on its path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    """An sdist and the wheel that is made of it, of the files that git tracks."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in run("git", "ls-files", "-z", cwd=ROOT).split("\0"):
        if name and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    run(sys.executable, "-m", "build", "--outdir", out, source)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


def installed(folder: Path, *arguments) -> Path:
    """A new environment with what pip is told to install in it; its folder of programs."""
    venv.create(folder, with_pip=True)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    run(programs / "python", "-m", "pip", "install", "-q", *arguments)
    return programs


def check_installed(programs: Path, cwd: Path) -> None:
    """The package works, from a folder that is not the checkout."""
    assert run(programs / "python", "-c", PROGRAM, cwd=cwd) == "installed\n"
    assert "moe-md demo" in run(programs / "moe-md", "--help", cwd=cwd)


def test_a_wheel_holds_the_package_and_nothing_else(built):
    sdist, wheel = built
    files = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in files} == {"moe_md"}
    tracked = run("git", "ls-files", "moe_md", cwd=ROOT).splitlines()
    assert {name for name in files if name.startswith("moe_md/")} == set(tracked)
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert set(tracked) | {"pyproject.toml", "README.md", "LICENSE"} <= names


def test_a_wheel_works_where_it_is_installed(built, tmp_path):
    """Its dependencies are those of the tests, so that they are not downloaded again."""
    programs = installed(tmp_path / "environment", "--no-deps", built[1])
    site = run(programs / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    (Path(site) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    check_installed(programs, tmp_path)


@pytest.mark.thorough
def test_an_sdist_brings_all_that_it_needs(built, tmp_path):
    """An environment that is empty, and pip left to find the dependencies."""
    check_installed(installed(tmp_path / "environment", built[0]), tmp_path)
