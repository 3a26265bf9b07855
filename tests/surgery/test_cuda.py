"""A model on a GPU: read and verified, its adapters saved there and loaded elsewhere, recomposed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from torch import Tensor, nn

import surgery
from surgery import adapters
from surgery.operations.adapted import adapters_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICE = "cuda"
KINDS = [kind for kind in adapters.names() if not kind.startswith("test-")]
TEXT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "vocab_size": 99,
}  # fmt: skip


def model_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    small: dict[str, Any] = {"img_size": 32, "depth": 2, "embed_dim": 32, "num_heads": 2}
    if name in ("vit", "beit"):
        made = {"vit": "vit_tiny_patch16_224", "beit": "beit_base_patch16_224"}[name]
        return timm.create_model(made, num_classes=5, **small).eval()
    config = {"bert": transformers.BertConfig, "llama": transformers.LlamaConfig}[name](**TEXT)
    return transformers.AutoModel.from_config(config).eval()


def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["vit", "beit", "bert", "llama"])
def test_reading_and_verifying_there_says_what_it_says_here(name: str, dtype: torch.dtype) -> None:
    model = model_of(name)
    expected = surgery.read(model)
    model.to(DEVICE, dtype)
    found = surgery.read(model)
    assert found.to_dict() | {"inputs": None} == expected.to_dict() | {"inputs": None}
    outcome = surgery.verify(model, found)
    assert outcome.findings and outcome.proved, outcome.to_dict()
    assert all(p.device.type == DEVICE for p in model.parameters())


def test_reading_while_the_default_device_is_a_gpu() -> None:
    expected = surgery.read(model_of("vit"))
    with torch.device(DEVICE):
        assert surgery.read(model_of("vit")).to_dict() == expected.to_dict()


def trained(model: nn.Module, kind: str, device: str, **options: Any) -> nn.Module:
    surgery.apply(model.to(device), "vit-attn-qv", adapter=kind, rank=4, seed=0, **options)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _, adapter in adapters_of(model):
            for parameter in adapter.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator).to(device)
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", [(DEVICE, "cpu"), ("cpu", DEVICE)], ids=["there", "here"])
def test_a_file_goes_from_one_device_to_the_other(
    tmp_path: Path, kind: str, way: tuple[str, str]
) -> None:
    source, target = way
    model = trained(model_of("vit"), kind, source)
    path = surgery.save(model, tmp_path / "adapters.safetensors")
    loaded = surgery.load(model_of("vit").to(target), path)
    assert {p.device.type for p in loaded.parameters()} == {target}
    expected = model(images().to(source)).to(target)
    torch.testing.assert_close(loaded(images().to(target)), expected, rtol=1e-3, atol=1e-4)


def test_a_file_is_loaded_while_the_default_device_is_a_gpu(tmp_path: Path) -> None:
    """The polar form has a ledger without entries, which safetensors puts on the default device."""
    model = trained(model_of("vit"), "polar", DEVICE)
    path = surgery.save(model, tmp_path / "adapters.safetensors")
    base = model_of("vit").to(DEVICE)  # made here: a seed is not the same weights on every device
    with torch.device(DEVICE):
        loaded = surgery.load(base, path)
    torch.testing.assert_close(loaded(images().to(DEVICE)), model(images().to(DEVICE)))


@pytest.mark.parametrize("kind", ["srlora", "sym-srlora"])
@pytest.mark.parametrize("mode", ["foreach", "fused"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_switch_keeps_the_function_and_forgets_what_it_swapped(
    kind: str, mode: str, dtype: torch.dtype
) -> None:
    model = trained(model_of("vit").to(dtype), kind, DEVICE, target_rank=8)
    options: dict[str, Any] = {mode: True}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], **options)
    recomposer = surgery.Recomposer(model, optimizer, total_steps=3)
    x = images().to(DEVICE, dtype)
    step(model, x)
    assert recomposer.step() is None
    optimizer.step()
    step(model, x)
    before, y = moments(model, optimizer), whole(model)
    report = recomposer.step()
    assert report is not None and report.places.keys() == {name for name, _ in adapters_of(model)}
    for name, exact in whole(model).items():
        assert (exact - y[name]).norm() <= 1e-5 * y[name].norm()
    for (name, key, state), old in zip(moments(model, optimizer), before, strict=True):
        adapter = model.get_submodule(name)
        parameter, dim = next(v for k, v in adapter.pairs().items() if k == key[0])
        places = torch.tensor(report.places[name], device=DEVICE)
        expected = old[2].index_fill(dim, places, 0)
        assert expected.any() and torch.equal(state, expected)
        assert not parameter.grad.index_select(dim, places).any()
    optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())


def step(model: nn.Module, x: Tensor) -> None:
    model.zero_grad()
    model(x).float().square().mean().backward()


def whole(model: nn.Module) -> dict[str, Tensor]:
    """Correction and delta of each adapter, in float64: what its weight is besides the original."""
    found = {}
    for name, adapter in adapters_of(model):
        c, d = adapter.correction()
        found[name] = (c.double() @ d.double() + adapter.delta()).clone()
    return found


def moments(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> list[tuple[str, tuple[str, str], Tensor]]:
    return [
        (name, (key, moment), optimizer.state[parameter][moment].clone())
        for name, adapter in adapters_of(model)
        for key, (parameter, _) in adapter.pairs().items()
        for moment in ("exp_avg", "exp_avg_sq")
    ]
