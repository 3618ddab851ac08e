"""Notebooks hold no outputs and run from top to bottom."""

from pathlib import Path

import programs
import pytest
from depths import short

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")

interactiveshell = pytest.importorskip("IPython.core.interactiveshell")
config = pytest.importorskip("traitlets.config")

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# The quickest notebook; the others run in this process, without a second start of jax.
IN_A_KERNEL = ("optimise_region",)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_outputs_are_stored(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None, cell.id


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_first_cell_installs_only_what_is_missing(path):
    first = nbformat.read(path, as_version=4).cells[0].source
    assert 'find_spec("moe_md") is None' in first
    assert "pip install" in first
    assert first == nbformat.read(NOTEBOOKS[0], as_version=4).cells[0].source  # the same in all
    needed = {"py3Dmol"} if "moe_md.plots.view" in path.read_text() else set()
    assert needed <= set(first.split("pip install -q")[1].split())


class Shell(interactiveshell.InteractiveShell):
    """Runs cells as a kernel does: magics, display of figures and of the last value of a cell."""

    def enable_gui(self, gui=None) -> None:
        """Called by `%matplotlib inline`; there is no window to open."""


@pytest.fixture
def shell():
    in_memory = config.Config(HistoryManager={"hist_file": ":memory:"})
    Shell.clear_instance()
    yield Shell.instance(config=in_memory)
    Shell.clear_instance()


@pytest.mark.parametrize(
    "path",
    short(NOTEBOOKS, only=[path for path in NOTEBOOKS if path.stem == "quickstart"]),
    ids=lambda path: path.stem,
)
def test_runs_from_top_to_bottom(path, shell, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    code = "\n".join(cell.source for cell in cells)
    with (
        programs.fresh_process(tmp_path, MOE_MD_SMOKE="1"),
        programs.carbon_monoxide_stands_on_carbon(code),
    ):
        for n, cell in enumerate(cells, 1):
            result = shell.run_cell(cell.source, store_history=True)
            result.raise_error()  # an error in a cell is an error here
            assert result.execution_count == n, cell.id


@pytest.mark.parametrize("name", IN_A_KERNEL)
def test_runs_in_a_kernel(name, tmp_path, monkeypatch):
    monkeypatch.setenv("MOE_MD_SMOKE", "1")
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()  # an error in a cell is an error here
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.execution_count is not None, cell.id
