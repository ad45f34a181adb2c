"""The notebooks of ``examples/`` run from top to bottom, and hold what they gave."""

import json
import re

import pytest

from tests.conftest import ROOT

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def cells(notebook):
    found = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == "code"]


def test_there_are_three():
    assert [each.stem for each in NOTEBOOKS] == ["cold_items", "comparison", "first_run"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda each: each.stem)
def test_outputs_are_kept_small_and_name_no_place_of_a_machine(notebook):
    assert all(cell["outputs"] for cell in cells(notebook))
    text = notebook.read_text(encoding="utf-8")
    assert len(text) < 100_000
    assert not re.search(r"[\"' (](/home|/root|/tmp|/work|/usr)/", text)


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda each: each.stem)
def test_it_runs(notebook, tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    place = {"metadata": {"path": str(tmp_path)}}
    ran = nbformat.read(notebook, 4)
    nbclient.NotebookClient(ran, timeout=900, kernel_name="python3", resources=place).execute()
    results = [cell["outputs"] for cell in ran.cells if cell["cell_type"] == "code"]
    assert all(results)
