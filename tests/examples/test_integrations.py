"""The examples of other people's loops run with those libraries, learn, and fold to plain models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import surgery
from surgery.operations.adapted import adapted_modules

pytestmark = pytest.mark.filterwarnings("ignore")
NOTEBOOK = Path(__file__).parents[2] / "examples/tour.ipynb"
CHANCE = 1.0
"""Below the loss of guessing among three classes, log 3."""


def test_plain_loop() -> None:
    from examples import plain_loop

    assert plain_loop.main() < CHANCE


def test_accelerate_loop() -> None:
    from accelerate.state import AcceleratorState

    from examples import accelerate_loop

    # There is one in a process, and a Trainer may have made it.
    AcceleratorState._reset_state(reset_partial_state=True)
    assert accelerate_loop.main() < CHANCE


def test_trainer() -> None:
    from examples import trainer

    assert trainer.main() < 0.68


def test_lightning() -> None:
    from examples import lightning_module

    assert lightning_module.main() < CHANCE


def test_timm_recipe_folds_the_average_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from examples import timm_recipe

    drifts: list[float] = []
    fold = surgery.fold

    def checked(model: nn.Module) -> surgery.FoldReport:
        report = fold(model, check_inputs=torch.randn(2, 3, 32, 32))
        assert report.function_drift is not None
        drifts.append(report.function_drift)
        return report

    monkeypatch.setattr(surgery, "fold", checked)
    model, average = timm_recipe.main(epochs=1)
    assert len(drifts) == 2 and max(drifts) < 1e-5
    for plain in (model, average):
        assert not list(adapted_modules(plain))
    names = [name for name, _ in model.named_parameters() if name.endswith("qkv.weight")]
    ours, theirs = model.state_dict(), average.state_dict()
    assert names and not any(torch.equal(ours[name], theirs[name]) for name in names)


@pytest.mark.slow  # the import alone takes seconds
def test_sentence_embeddings() -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from examples import sentence_embeddings

    model = sentence_embeddings.main()
    assert isinstance(model, sentence_transformers.SentenceTransformer)
    assert not list(adapted_modules(model))
    words = sentence_embeddings.PAIRS
    one, other = (model.encode(list(side)) for side in (words, words.values()))
    assert model.similarity(one, other).argmax(1).tolist() == [0, 1, 2, 3]


@pytest.mark.slow
def test_the_notebook_executes() -> None:
    nbclient = pytest.importorskip("nbclient")
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parents[1])}}
    ).execute()
    outputs = [cell["outputs"] for cell in notebook.cells if cell.cell_type == "code"]
    assert all(output.output_type != "error" for made in outputs for output in made)
    assert "attention.query" in json.dumps(outputs[0])


@pytest.mark.slow
def test_the_code_of_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same cells without a kernel: fast enough for every run."""
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    for cell in code:
        exec(compile(cell, "tour.ipynb", "exec"), scope)
    losses = scope["losses"]
    assert isinstance(losses, list) and losses[-1] < losses[0]
