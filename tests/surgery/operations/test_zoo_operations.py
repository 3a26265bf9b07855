"""Apply with a training step, fold and undo over real architectures with tiny configurations."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import timm
import torch
import transformers
from torch import Tensor, nn

from surgery.anatomy.inputs import ExampleInputs, example_inputs
from surgery.anatomy.read import read
from surgery.anatomy.types import Access, Anatomy
from surgery.checkpoint import load, save
from surgery.operations.adapted import Adapted, adapters_of
from surgery.operations.apply import apply
from surgery.operations.fold import fold
from surgery.operations.planner import plan
from surgery.operations.undo import undo

VISION = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "num_classes": 4,
}
SIZE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
TEXT = {**SIZE, "vocab_size": 128, "max_position_embeddings": 64}
IMAGE = {**SIZE, "image_size": 32, "patch_size": 8}
QV = ["attention.query", "attention.value"]
ATTENTION = [*QV, "attention.key", "attention.output"]
MLP = ["mlp.up", "mlp.down"]


def timm_model(name: str, **sizes: object) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, **sizes)


def hf(model: str, config: str, **sizes: object) -> Callable[[], nn.Module]:
    return lambda: getattr(transformers, model)(getattr(transformers, config)(**sizes))


SWIN = {
    "img_size": 64,
    "patch_size": 4,
    "window_size": 4,
    "embed_dim": 16,
    "depths": (2, 2),
    "num_heads": (2, 4),
}
ZOO: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "timm ViT": (timm_model("vit_tiny_patch16_224", **VISION), [*ATTENTION, *MLP]),
    "timm DINOv2": (timm_model("vit_small_patch14_dinov2", **VISION), [*ATTENTION, *MLP]),
    "timm Swin": (
        timm_model("swin_tiny_patch4_window7_224", num_classes=4, **SWIN),
        [*ATTENTION, *MLP],
    ),
    "timm BEiT": (timm_model("beit_base_patch16_224", **VISION), [*ATTENTION, *MLP]),
    "BERT": (hf("BertForSequenceClassification", "BertConfig", **TEXT), [*ATTENTION, *MLP]),
    "ViT": (hf("ViTForImageClassification", "ViTConfig", **IMAGE), [*ATTENTION, *MLP]),
    "CLIP vision": (hf("CLIPVisionModel", "CLIPVisionConfig", **IMAGE), [*ATTENTION, *MLP]),
    "GPT-2": (
        hf(
            "GPT2LMHeadModel",
            "GPT2Config",
            n_embd=32,
            n_layer=2,
            n_head=4,
            vocab_size=128,
            n_positions=64,
        ),
        [*ATTENTION, *MLP],
    ),
    "Llama": (
        hf("LlamaForCausalLM", "LlamaConfig", **TEXT, num_key_value_heads=2),
        [*ATTENTION, *MLP, "mlp.gate"],
    ),
    "Phi-3": (
        hf("Phi3ForCausalLM", "Phi3Config", **TEXT, num_key_value_heads=2, pad_token_id=0),
        [*ATTENTION, *MLP, "mlp.gate"],
    ),
    "GPT-NeoX": (hf("GPTNeoXForCausalLM", "GPTNeoXConfig", **TEXT), [*ATTENTION, *MLP]),
    "ALBERT": (
        hf("AlbertForMaskedLM", "AlbertConfig", **TEXT, embedding_size=16),
        [*ATTENTION, *MLP],
    ),
}
KINDS = ["symlora", "lora", "srlora"]


def build(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():  # zero-initialised heads and tiny weights would hide what adapters do
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
            else:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def run(model: nn.Module, inputs: ExampleInputs) -> Tensor:
    """The output without gradients: SDPA takes another kernel where a mask (BEiT's) needs them."""
    with torch.no_grad():
        return forward(model, inputs)


def forward(model: nn.Module, inputs: ExampleInputs) -> Tensor:
    output = model(*inputs.args, **inputs.kwargs)
    return output if isinstance(output, Tensor) else output[0]


def step(model: nn.Module, inputs: ExampleInputs) -> None:
    """One plain optimizer step."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    optimizer.zero_grad()
    forward(model, inputs).float().square().mean().backward()
    optimizer.step()


def bits(model: nn.Module) -> dict[str, bytes]:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: t.detach().numpy().tobytes() for name, t in tensors.items()}


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Everything an operation may change is the same after the block."""

    def take() -> list[object]:
        return [
            bits(model),
            list(model.state_dict()),
            {n: p.requires_grad for n, p in model.named_parameters()},
            {n: (type(m), sorted(vars(m))) for n, m in model.named_modules()},
        ]

    before = take()
    yield
    assert take() == before


@pytest.fixture(scope="module", params=ZOO)
def prepared(request: pytest.FixtureRequest) -> tuple[nn.Module, ExampleInputs, list[str], Anatomy]:
    make, roles = ZOO[request.param]
    model = build(make)
    inputs = example_inputs(model)
    return model, inputs, roles, read(model, inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_apply_train_fold_undo(
    prepared: tuple[nn.Module, ExampleInputs, list[str], Anatomy], kind: str, tmp_path: Path
) -> None:
    base, inputs, roles, anatomy = prepared
    model = copy.deepcopy(base)
    options = {"rectangular": "truncate"} if kind == "symlora" else {}
    policy = {
        "select": [{"roles": roles}],
        "adapter": {"kind": kind, "rank": 4, **options},
        "train": ["head"],
    }
    y = run(model, inputs)
    keys = list(model.state_dict())
    with restored(model):
        made = plan(model, policy, anatomy=anatomy)
        assert {str(o.projection.role) for o in made.operations} == set(roles)
        apply(model, plan=made, seed=0)
        assert [key for key in model.state_dict() if ".adapters." not in key] == keys
        if kind == "srlora":
            torch.testing.assert_close(run(model, inputs), y, rtol=1e-4, atol=1e-4)
        else:
            assert torch.equal(run(model, inputs), y)
        step(model, inputs)
        _check_gradients(model, made.trained_names, kind)
        step(model, inputs)
        trained = run(model, inputs)
        assert not torch.allclose(trained, y, rtol=1e-3, atol=1e-3)

        folded = copy.deepcopy(model)
        plain = {name: type(m) for name, m in base.named_modules()}
        report = fold(folded, check_inputs=inputs)
        assert report.function_drift is not None
        assert report.function_drift < 1e-5
        torch.testing.assert_close(run(folded, inputs), trained, rtol=1e-4, atol=1e-4)
        assert list(folded.state_dict()) == keys
        assert {name: type(m) for name, m in folded.named_modules()} == plain

        path = save(model, tmp_path / "adapters.safetensors")
        assert torch.equal(run(load(copy.deepcopy(base), path), inputs), trained)
        undo(model)
    assert torch.equal(run(model, inputs), y)


def _check_gradients(model: nn.Module, also: tuple[str, ...], kind: str) -> None:
    """Every adapter got a gradient, and no other parameter did but those that the policy names."""
    for path, adapter in adapters_of(model):
        sizes = [float(p.grad.abs().sum()) for p in adapter.parameters()]
        assert max(sizes) > 0, path
        if kind == "srlora":
            assert min(sizes) > 0, path
    for name, parameter in model.named_parameters():
        expected = ".adapters." in name or name in also
        assert (parameter.grad is not None) is expected, name


def test_weights_read_without_their_module_are_composed() -> None:
    model = build(ZOO["timm BEiT"][0])
    made = plan(model, "vit-attn-qv", rank=2)
    assert {o.access for o in made.operations} == {Access.PARAMETER}
    apply(model, plan=made)
    assert isinstance(model.blocks[0].attn.qkv, Adapted)


@pytest.mark.parametrize("name", ["timm ViT", "ViT", "BERT", "Llama"])
def test_the_library_s_policies_fit(name: str) -> None:
    family = {"BERT": "text", "Llama": "llm"}.get(name, "vit")
    model = build(ZOO[name][0])
    for policy in (f"{family}-attn-qv", f"{family}-all-linear"):
        assert plan(model, policy, rank=2).operations
