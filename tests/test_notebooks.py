"""The notebooks run from beginning to end, each in a kernel of its own, and are kept without outputs."""

import json
import os
import shutil
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A copy beside an empty `runs`, so that the artifacts of one notebook are there for the next, and no older ones."""
    copy = tmp_path_factory.mktemp("project") / "notebooks"
    shutil.copytree(FOLDER, copy, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    return copy


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs(folder, name):
    pytest.importorskip("ipykernel", reason="notebooks run in a kernel: pip install ipykernel")
    nbclient = pytest.importorskip("nbclient", reason="notebooks are run by nbclient: pip install nbclient")
    import nbformat

    # A user's kernel has one device, not the eight that tests pretend to have.
    env = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(FOLDER.parent), env.get("PYTHONPATH"))))
    notebook = nbformat.read(folder / name, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env=env)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_kept_without_outputs(name):
    notebook = json.loads((FOLDER / name).read_text())
    for cell in notebook["cells"]:
        assert not cell.get("outputs"), f"clear the outputs of {name}"
        assert cell.get("execution_count") is None
