"""Every notebook runs from top to bottom, and carries outputs that are fit to be read by anyone."""

import ast
import itertools
import re
from pathlib import Path

import pytest

from tests.turns import part_of, turn

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def test_they_are_numbered_from_the_quick_start():
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{n:02d}" for n in range(1, len(NOTEBOOKS) + 1)]
    assert "quick_start" in NOTEBOOKS[0].name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of Jupyter's own packages
@pytest.mark.parametrize("path", part_of(NOTEBOOKS, 7, turn()), ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_a_notebook_imports_exists(path):
    notebook = nbformat.read(path, as_version=4)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    lines = [line for source in cells for line in source.splitlines() if not line.startswith("%")]
    tree = ast.parse("\n".join(lines))
    tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert tree.body
    exec(compile(tree, path.name, "exec"), {})


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_keeps_its_outputs_and_no_paths(path):
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = str([cell.outputs for cell in cells])
    assert any(cell.outputs for cell in cells)
    assert "'error'" not in outputs and "stderr" not in outputs
    assert not re.search(r"(?<![\w:/])/(home|root|tmp|usr|Users|opt|work)/", outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_has_one_title_and_whole_streams(path):
    notebook = nbformat.read(path, as_version=4)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert len(re.findall(r"^# ", text, re.MULTILINE)) == 1 and text.startswith("# ")
    for cell in notebook.cells:
        kinds = [output.output_type for output in cell.get("outputs", [])]
        assert ("stream", "stream") not in itertools.pairwise(kinds)
