"""The notebooks under docs/notebooks and the example of docs/python.md run, without a network."""

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

DOCS = Path(__file__).parents[1] / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, default_data_dir: Path) -> None:
    """Relative paths are those of a folder of the test; a kernel computes with one thread on the CPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VAEBENCH_DATA_DIR", str(default_data_dir))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))


def executed(path: Path, folder: Path) -> nbformat.NotebookNode:
    """Return the notebook with its outputs."""
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    return NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()


def test_the_notebooks_are_there_without_outputs():
    assert [path.stem for path in NOTEBOOKS] == ["compare", "first_run", "your_own_encoder"]
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        assert all(not cell.outputs and cell.execution_count is None for cell in cells if cell.cell_type == "code")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_in_a_minute(path: Path, tmp_path: Path):
    before = os.times()
    notebook = executed(path, tmp_path)
    after = os.times()  # of the kernel too, whose end was waited for
    assert after.children_user + after.children_system - before.children_user - before.children_system < 60
    kinds = {kind for cell in notebook.cells for output in cell.get("outputs", []) for kind in output.get("data", {})}
    assert "text/html" in kinds  # a run or a table
    assert "image/png" in kinds
    assert "lower bound" in str([cell.get("outputs") for cell in notebook.cells])


def test_control_a_cell_that_fails_is_found(tmp_path: Path):
    path = tmp_path / "wrong.ipynb"
    cell = nbformat.v4.new_code_cell("raise ValueError(3)")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    with pytest.raises(CellExecutionError, match="ValueError"):
        executed(path, tmp_path)


@pytest.mark.slow
def test_the_example_of_the_page_runs(tmp_path: Path):
    (code,) = re.findall(r"^```python\n(.*?)^```", (DOCS / "python.md").read_text(encoding="utf-8"), re.M | re.S)
    names: dict = {}
    exec(compile(code, "python.md", "exec"), names)
    assert (tmp_path / "figure.pdf").read_bytes().startswith(b"%PDF")
    assert len(names["table"]) == 2
    assert [str(result.direction) for result in names["results"]] == ["lower_bound", "lower_bound"]
    assert set(names["table"]["result.k"]) == {50}
