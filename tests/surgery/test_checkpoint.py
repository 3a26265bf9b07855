"""Adapter files: complete or absent, refused on another base, found again under other names."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import timm
import torch
import transformers
from torch import Tensor, nn

from surgery import adapter_file, adapters
from surgery.checkpoint import load, save
from surgery.errors import CheckpointError, StateError
from surgery.operations.adapted import Adapted, adapters_of
from surgery.operations.apply import apply
from surgery.operations.undo import undo

KINDS = adapters.names()
BERT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "vocab_size": 99, "max_position_embeddings": 64, "num_labels": 3,
}  # fmt: skip


def vit(seed: int = 0, **more: object) -> nn.Module:
    torch.manual_seed(seed)
    small = {"img_size": 32, "depth": 2, "embed_dim": 32, "num_heads": 2, "num_classes": 5}
    return timm.create_model("vit_tiny_patch16_224", **{**small, **more}).eval()


def images(seed: int = 1) -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def trained(model: nn.Module, kind: str = "lora", **overrides: object) -> nn.Module:
    overrides = {"adapter": kind, "rank": 4, "seed": 0, **overrides}
    apply(model, "vit-attn-qv", **overrides)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def state(model: nn.Module) -> dict[str, object]:
    return {
        "bits": {k: v.clone() for k, v in model.state_dict(keep_vars=False).items()},
        "live": {k: v.detach().clone() for k, v in model.named_parameters()},
        "flags": {k: v.requires_grad for k, v in model.named_parameters()},
        "classes": [type(m) for m in model.modules()],
    }


def same(one: dict[str, object], other: dict[str, object]) -> bool:
    tensors = all(
        one[part].keys() == other[part].keys()
        and all(torch.equal(one[part][k], other[part][k]) for k in one[part])
        for part in ("bits", "live")
    )
    return tensors and one["flags"] == other["flags"] and one["classes"] == other["classes"]


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_onto_a_plain_model_and_into_an_adapted_one(tmp_path: Path, kind: str) -> None:
    model = trained(vit(), kind)
    path = save(model, tmp_path / "adapters.safetensors")
    plain = load(vit(), path)
    assert torch.equal(plain(images()), model(images()))
    assert same(state(plain), state(model))
    adapted = apply(vit(), "vit-attn-qv", adapter=kind, rank=4, seed=9)
    parameters = [id(p) for p in adapted.parameters()]
    assert load(adapted, path) is adapted
    assert torch.equal(adapted(images()), model(images()))
    assert [id(p) for p in adapted.parameters()] == parameters


def test_a_loaded_model_undoes_to_what_it_was(tmp_path: Path) -> None:
    path = save(trained(vit(), "srlora"), tmp_path / "a.safetensors")
    model = vit()
    before = state(model)
    undo(load(model, path))
    assert same(state(model), before)


def test_it_holds_what_trained_and_nothing_else(tmp_path: Path) -> None:
    model = trained(vit())
    tensors = safetensors.torch.load_file(save(model, tmp_path / "a.safetensors"))
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    assert tensors.keys() == trains
    assert all(torch.equal(model.state_dict()[k], v) for k, v in tensors.items())


def test_running_statistics_that_moved_travel_along(tmp_path: Path) -> None:
    def make() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval()

    x = torch.randn(8, 4)
    model = apply(make(), {"select": [{"modules": ["0"]}]}, rank=2, example_inputs=x)
    model.train()(x)
    model.eval()
    path = save(model, tmp_path / "a.safetensors")
    assert "1.running_mean" in safetensors.torch.load_file(path)
    assert torch.equal(load(make(), path)(x), model(x))


def test_a_policy_without_adapters(tmp_path: Path) -> None:
    model = apply(vit(), "bitfit")
    with torch.no_grad():
        model.blocks[0].mlp.fc1.bias.fill_(0.5)
    path = save(model, tmp_path / "a.safetensors")
    assert torch.equal(load(vit(), path)(images()), model(images()))


class Wrapped(nn.Module):
    """The same model with other module names and another class."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.backbone = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone(x)


@pytest.mark.parametrize("kind", ["lora", "srlora"])
def test_renamed_modules_are_found_by_structure(tmp_path: Path, kind: str) -> None:
    model = trained(vit(), kind)
    path = save(model, tmp_path / "a.safetensors")
    other = load(Wrapped(vit()), path, example_inputs=images())
    torch.testing.assert_close(other(images()), model(images()))


@pytest.mark.parametrize("kind", ["symlora", "srlora"])
def test_a_fused_projection_takes_the_adapters_of_separate_ones(tmp_path: Path, kind: str) -> None:
    """transformers keeps query, key and value apart where timm fuses them."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
        image_size=32, patch_size=16, num_labels=5, layer_norm_eps=1e-6,
    )  # fmt: skip
    split = transformers.ViTForImageClassification(config).eval()
    fused = vit()
    _copy_attention(split, fused)
    head = {f"classifier.{k}": v for k, v in fused.head.state_dict().items()}
    split.load_state_dict(head, strict=False)
    path = save(trained(split, kind), tmp_path / "a.safetensors")
    load(fused, path)
    ours = {p.rpartition("adapters.weight.")[2] + p[7:8]: a for p, a in adapters_of(fused)}
    assert len(ours) == 4
    pairs = zip(
        adapters_of(split), sorted(adapters_of(fused), key=lambda item: item[0]), strict=True
    )
    for (theirs, one), (name, other) in pairs:
        assert theirs.rpartition(".")[2] == name.rpartition(".")[2]
        assert torch.equal(one.delta(), other.delta())
    assert torch.equal(split.classifier.weight, fused.head.weight)


def _copy_attention(split: nn.Module, fused: nn.Module) -> None:
    sites = [
        m
        for m in split.modules()
        if isinstance(m, nn.Linear) and m.in_features == m.out_features == 32
    ]
    for layer, block in enumerate(fused.blocks):
        with torch.no_grad():
            block.attn.qkv.weight.copy_(
                torch.cat([m.weight for m in sites[4 * layer : 4 * layer + 3]])
            )


def test_another_base_is_refused_by_its_first_difference_or_warned_of(tmp_path: Path) -> None:
    model = trained(vit())
    path = save(model, tmp_path / "a.safetensors")
    other = vit()
    with torch.no_grad():
        other.blocks[1].attn.qkv.weight[40, 0] += 1e-6
        other.blocks[1].attn.qkv.weight[70, 0] += 1e-6
    before = state(other)
    with pytest.raises(CheckpointError, match=r"another base: blocks\.1\.attn\.qkv\.weight:value"):
        load(other, path)
    assert same(state(other), before)
    with pytest.warns(UserWarning, match="another base"):
        load(other, path, base="warn")
    assert isinstance(other.blocks[0].attn.qkv, Adapted)


def test_a_treatment_of_other_bases_that_does_not_exist(tmp_path: Path) -> None:
    file = save(trained(vit()), tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="unknown base 'raise'"):
        load(vit(), file, base="raise")


class Reordered(nn.Module):
    """Two norms of one shape, in either order, under either names; a running mean."""

    def __init__(self, order: str, prefix: str = "norm") -> None:
        super().__init__()
        self.prefix = prefix
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
        for letter in order:
            setattr(self, f"{prefix}_{letter}", nn.LayerNorm(8))
        self.mean = nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = getattr(self, f"{self.prefix}_a")(self.mean(x.mT).mT)
        y = nn.functional.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))
        return getattr(self, f"{self.prefix}_b")(y)


class Other(Reordered):
    """Of another class, so that its policy is laid anew."""


NORMS = {"select": [{"roles": "attention.query"}], "adapter": "lora", "train": ["norms"]}


def test_what_else_trained_is_paired_by_name_and_never_by_chance(tmp_path: Path) -> None:
    x = torch.randn(2, 6, 8)
    base = Reordered("ab").eval()
    model = apply(copy.deepcopy(base), NORMS, example_inputs=x, rank=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += parameter.requires_grad * torch.rand_like(parameter)
    file = save(model, tmp_path / "a.safetensors")
    same = Other("ba").eval()
    same.load_state_dict(base.state_dict())
    load(same, file, example_inputs=x)
    torch.testing.assert_close(same(x), model(x))
    renamed = Other("ba", "layernorm").eval()
    with torch.no_grad():
        for letter in "qkv":
            getattr(renamed, letter).load_state_dict(getattr(base, letter).state_dict())
    with pytest.raises(CheckpointError, match="several tensors of one shape"):
        load(renamed, file, example_inputs=x)


def test_buffers_that_had_not_moved_when_it_was_written_move_back(tmp_path: Path) -> None:
    x = torch.randn(2, 6, 8)
    model = apply(Reordered("ab").eval(), NORMS, example_inputs=x, rank=2)
    file, before = save(model, tmp_path / "a.safetensors"), model(x)
    model.train()(3 * x + 1)
    model.eval()
    assert not torch.equal(model(x), before)
    assert torch.equal(load(model, file)(x), before)


def test_rows_that_carry_no_adapter_may_differ(tmp_path: Path) -> None:
    path = save(trained(vit()), tmp_path / "a.safetensors")
    other = vit()
    with torch.no_grad():
        other.blocks[1].attn.qkv.weight[40] += 1  # a key row
    load(other, path)


@pytest.mark.parametrize(
    ("make", "difference"),
    [
        (lambda: vit(num_classes=7), r"head\.bias: the model has \(7,\), the file \(5,\)"),
        (lambda: Wrapped(vit(depth=3)), "4 adapters against 6"),
        (lambda: vit(seed=1), r"another base: blocks\.0\.attn\.qkv\.weight:query"),
        (lambda: vit(embed_dim=48), r"32 -> 32.* against .*48 -> 48"),
        (lambda: vit().bfloat16(), "bfloat16"),
        (lambda: nn.Sequential(nn.Linear(4, 4)), "cannot be laid on Sequential"),
        (
            lambda: transformers.BertForSequenceClassification(transformers.BertConfig(**BERT)),
            "another base",
        ),
    ],
)
def test_another_model_is_refused_by_its_first_difference(
    tmp_path: Path, make: Callable[[], nn.Module], difference: str
) -> None:
    torch.manual_seed(0)
    model = make()
    overrides = {"train": []} if "Bert" in type(model).__name__ else {}
    path = save(trained(vit(), **overrides), tmp_path / "a.safetensors")
    before = state(model)
    given = {"Sequential": torch.zeros(2, 4), "Wrapped": images()}.get(type(model).__name__)
    with pytest.raises(CheckpointError, match=difference):
        load(model, path, example_inputs=given)
    assert same(state(model), before)


def test_a_model_that_carries_other_adapters_is_refused(tmp_path: Path) -> None:
    path = save(trained(vit()), tmp_path / "a.safetensors")
    model = trained(vit(), rank=2)
    before = state(model)
    with pytest.raises(CheckpointError, match=r"(?s)lora of rank 4 against .*lora of rank 2.*undo"):
        load(model, path)
    assert same(state(model), before)


def test_saving_with_nothing_applied(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="nothing to save"):
        save(vit(), tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["missing/a.safetensors", "."])
def test_a_path_that_cannot_be_written(tmp_path: Path, place: str) -> None:
    with pytest.raises(CheckpointError, match="cannot be written") as error:
        save(trained(vit()), tmp_path / place)
    assert error.value.remedy is not None
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_a_failed_write_keeps_the_file_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained(vit())
    path = save(model, tmp_path / "a.safetensors")
    content = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save(model, path)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"model-surgery": {}}))


def _foreign(path: Path) -> None:
    safetensors.torch.save_file({"a": torch.zeros(2)}, path)


def _from_the_future(path: Path) -> None:
    _rewrite(path, version=99)


def _without_plan(path: Path) -> None:
    _rewrite(path, plan={})


def _with_a_bad_policy(path: Path) -> None:
    plan = about(path)["plan"]
    plan["policy"]["select"][0]["depth"] = "sideways"
    _rewrite(path, plan=plan)


def _without_a_factor(path: Path) -> None:
    _rewrite(path, drop="blocks.1.attn.qkv.adapters.weight.value.B")


def _without_the_head(path: Path) -> None:
    _rewrite(path, drop="head.weight")


def _with_a_base_weight(path: Path) -> None:
    _rewrite(path, add={"blocks.0.mlp.fc1.weight": torch.zeros(128, 32)})


def _rewrite(
    path: Path, drop: str = "", add: dict[str, Tensor] | None = None, **changes: object
) -> None:
    """Another file under an honest seal, so that it is refused for what it says."""
    facts = {**about(path), **changes}
    tensors = {**safetensors.torch.load_file(path), **(add or {})}
    tensors.pop(drop, None)
    del facts["sha256"]
    facts["sha256"] = adapter_file.digest(facts, tensors)
    safetensors.torch.save_file(tensors, path, {"model-surgery": json.dumps(facts)})


def about(path: Path) -> dict[str, Any]:
    with safetensors.safe_open(path, "pt") as file:
        return json.loads(file.metadata()["model-surgery"])


@pytest.mark.parametrize(
    "breaking",
    [
        _truncated, _empty, _pickled, _foreign, _from_the_future, _without_plan,
        _with_a_bad_policy, _without_a_factor, _without_the_head, _with_a_base_weight, Path.unlink,
    ],
)  # fmt: skip
def test_a_broken_file_is_refused_and_the_model_untouched(
    tmp_path: Path, breaking: Callable[[Path], None]
) -> None:
    path = save(trained(vit()), tmp_path / "a.safetensors")
    breaking(path)
    for model in (vit(), apply(vit(), "vit-attn-qv", adapter="lora", rank=4)):
        before = state(model)
        with pytest.raises(CheckpointError) as error:
            load(model, path)
        assert error.value.where == str(path)
        assert error.value.remedy
        assert same(state(model), before)


def test_the_metadata_names_plan_base_and_libraries(tmp_path: Path) -> None:
    path = save(trained(vit()), tmp_path / "a.safetensors")
    file = adapter_file.read_file(path)
    assert file.plan.policy.name == "vit-attn-qv"
    assert len(file.base) == len(file.plan.operations) == 4
    assert all(entry.startswith("float32:") for entry in file.base)
    assert about(path)["libraries"]["torch"] == importlib.metadata.version("torch")


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    model = trained(vit(), "srlora")
    one, other = (save(m, tmp_path / n) for m, n in ((model, "a"), (copy.deepcopy(model), "b")))
    assert one.read_bytes() == other.read_bytes()
