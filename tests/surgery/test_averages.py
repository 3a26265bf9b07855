"""An average of a model under recomposition (EMA) is right, runs right and folds right, or is refused."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from timm.utils import ModelEmaV3
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import surgery
from surgery.errors import StateError
from surgery.operations.adapted import adapted_modules, adapters_of
from surgery.training import Recomposer

DECAY, STEPS = 0.7, 9
KINDS = ["srlora", "sym-srlora"]
KEEPERS = {
    "timm": lambda model: ModelEmaV3(model, decay=DECAY),
    "timm, one by one": lambda model: ModelEmaV3(model, decay=DECAY, foreach=False),
    "timm, buffers copied": lambda model: ModelEmaV3(model, decay=DECAY, exclude_buffers=True),
    "torch": lambda model: AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY)),
}


def adapted(kind="srlora", **options):
    torch.manual_seed(0)
    sizes = {"img_size": 32, "depth": 1, "embed_dim": 32, "num_heads": 2, "num_classes": 3}
    model = timm.create_model("vit_tiny_patch16_224", **sizes)
    return surgery.apply(model, "vit-attn-qv", adapter=kind, rank=4, **options)


def update(average, model):
    average.update(model) if isinstance(average, ModelEmaV3) else average.update_parameters(model)


def backward(model, optimizer, step):
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(12, 3, 32, 32, generator=generator)
    optimizer.zero_grad()
    F.cross_entropy(model(images), torch.arange(12) % 3).backward()


def optimizer_of(model):
    return torch.optim.AdamW(surgery.parameter_groups(model, lr=1e-2))


def exact(model):
    """W0 + corrections + deltas of query and value, float64."""
    parts = []
    for _, adapter in adapters_of(model):
        c, d = adapter.correction()
        parts.append(c.double() @ d.double() + adapter.delta())
    ((_, owner),) = adapted_modules(model)
    query, value = owner.original("weight").double().chunk(3)[::2]
    return torch.cat([query + parts[0], value + parts[1]])


def train(model, average, recomposer, optimizer, steps):
    """Yields after each step; the recomposition, if there was one."""
    for step in steps:
        backward(model, optimizer, step)
        report = recomposer.step()
        optimizer.step()
        update(average, model)
        yield report


@pytest.mark.parametrize("name", KEEPERS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_average_is_one_of_the_whole_training(kind, name):
    """It stays by the average of the weights themselves, runs as it folds, and leaves no trace.

    Where buffers are copied a fused pair takes the model's values, so the average is one of the other pairs.
    """
    model, whole = adapted(kind, target_rank=10), name in ("timm", "timm, one by one")
    average, optimizer, start = KEEPERS[name](model), optimizer_of(model), exact(model)
    recomposer = Recomposer(model, optimizer, total_steps=STEPS, averages=[average])
    images, mean = torch.randn(2, 3, 32, 32), start
    for _ in train(model, average, recomposer, optimizer, range(STEPS)):
        first = isinstance(average, AveragedModel) and average.n_averaged == 1
        mean = exact(model) if first else mean.lerp(exact(model), 1 - DECAY)
        limit = 0.1 * (mean - start).norm() if whole else 0.8 * (exact(model) - mean).norm()
        assert (exact(average.module) - mean).norm() < limit + 1e-6
        folded = copy.deepcopy(average.module).eval()
        ran = average.module.eval()(images)
        surgery.fold(folded)
        torch.testing.assert_close(folded(images), ran, rtol=1e-4, atol=1e-5)
    assert len(recomposer.history) == 2
    assert not folded._forward_pre_hooks
    assert not surgery.undo(average.module)._forward_pre_hooks


@pytest.mark.parametrize("keep", KEEPERS.values(), ids=KEEPERS)
@pytest.mark.parametrize("act", [surgery.fold, lambda model: surgery.save(model, "a.safetensors")])
def test_an_average_that_was_not_told_is_refused(keep, act, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = adapted()
    average, optimizer = keep(model), optimizer_of(model)
    recomposer = Recomposer(model, optimizer, total_steps=STEPS)
    assert any(train(model, average, recomposer, optimizer, range(5)))
    before = {name: tensor.clone() for name, tensor in average.module.state_dict().items()}
    with pytest.raises(StateError, match="average of a model that was recomposed") as caught:
        act(average.module)
    assert "averages=[average]" in str(caught.value.remedy)
    after = average.module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not list(tmp_path.iterdir())
    surgery.fold(model)


def test_an_average_goes_on_with_its_state_and_not_without():
    ends = []
    for stop in (None, 5):
        model = adapted()
        average, optimizer = ModelEmaV3(model, decay=DECAY), optimizer_of(model)
        recomposer = Recomposer(model, optimizer, total_steps=STEPS, averages=[average])
        list(train(model, average, recomposer, optimizer, range(stop or STEPS)))
        if stop:
            states = [each.state_dict() for each in (model, average, optimizer, recomposer)]
            states = copy.deepcopy(states)
            model = adapted()
            average, optimizer = ModelEmaV3(model, decay=DECAY), optimizer_of(model)
            recomposer = Recomposer(model, optimizer, total_steps=STEPS, averages=[average])
            model.load_state_dict(states[0])
            lost = Recomposer(model, optimizer, total_steps=1, averages=[average])
            lost.total_steps = 5
            lost.steps = 2
            backward(model, optimizer, 0)
            with pytest.raises(StateError, match="did not follow an earlier recomposition"):
                lost.step()
            for each, state in zip((average, optimizer, recomposer), states[1:], strict=True):
                each.load_state_dict(state)
            list(train(model, average, recomposer, optimizer, range(stop, STEPS)))
        ends.append(exact(average.module))
    assert torch.equal(*ends)


def test_what_is_no_copy_of_the_model_is_refused():
    model, other = adapted(), surgery.undo(adapted())
    for average in (other, model, adapted("lora"), adapted(target_rank=6), ModelEmaV3(other)):
        with pytest.raises(StateError, match="is no average of the model"):
            Recomposer(model, optimizer_of(model), total_steps=STEPS, averages=[average])
        assert not average._forward_pre_hooks


def test_a_fold_that_fails_leaves_the_average_as_it_was():
    model = adapted()
    average, optimizer = ModelEmaV3(model, decay=DECAY).module, optimizer_of(model)
    Recomposer(model, optimizer, total_steps=STEPS, averages=[average])
    broken = torch.zeros(1, 3, 5, 5)
    with pytest.raises(Exception):  # noqa: B017  timm's own, of images of the wrong size
        surgery.fold(average, check_inputs=broken)
    assert len(average._forward_pre_hooks) == 1
    next(adapters_of(average))[1].B.data.fill_(float("nan"))
    with pytest.raises(StateError, match="not finite"):
        surgery.fold(average)
    assert len(average._forward_pre_hooks) == 1
