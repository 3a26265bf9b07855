"""Folding on disk is folding in memory, bit for bit, and touches nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import surgery
from surgery import adapters
from surgery.errors import CheckpointError, StateError
from surgery.operations.adapted import adapters_of

WIDTH = 16


class Body(nn.Module):
    """One attention with a fused projection, and a feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(x)))


class Headed(nn.Module):
    """The same with a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = Body(), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean(1))


def made(cls: type[nn.Module], dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return cls().to(dtype).eval()


def trained(
    model: nn.Module, path: Path, kind: str = "lora", train: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """Adapt, move, save the adapter; gives the folded state dict."""
    x = torch.zeros(2, 4, WIDTH, dtype=next(model.parameters()).dtype)
    options = {"rectangular": "truncate"} if kind == "symlora" else {}
    roles = ["attention.query", "attention.value", "attention.output", "mlp.up"]
    policy = {"select": [{"roles": roles}], "adapter": {"kind": kind, "rank": 2, **options}}
    surgery.apply(model, {**policy, "train": list(train)}, example_inputs=x, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    surgery.save(model, path)
    surgery.fold(model)
    return {key: value.clone() for key, value in model.state_dict().items()}


def checkpoint(folder: Path, state: dict[str, Tensor], shards: int) -> Path:
    """A folder as a hub would serve it."""
    folder.mkdir()
    (folder / "config.json").write_text('{"a": 1}')
    (folder / "pytorch_model.bin").write_bytes(b"stale")
    if shards == 1:
        save_file(state, folder / "model.safetensors", {"format": "pt"})
        return folder
    names = [f"model-{i}.safetensors" for i in range(shards)]
    home = {key: names[i % shards] for i, key in enumerate(state)}
    for name in names:
        save_file({k: v for k, v in state.items() if home[k] == name}, folder / name)
    index = {"metadata": {}, "weight_map": home}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def everything(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    def view(t: Tensor) -> Tensor:
        return t.contiguous().flatten().view(torch.uint8)

    return one.keys() == other.keys() and all(
        one[k].dtype == other[k].dtype and torch.equal(view(one[k]), view(other[k])) for k in one
    )


@pytest.mark.parametrize("kind", adapters.names())
@pytest.mark.parametrize(
    ("dtype", "shards"), [(torch.float32, 1), (torch.bfloat16, 3), (torch.float16, 2)]
)
def test_the_files_hold_what_fold_gives(
    tmp_path: Path, kind: str, dtype: torch.dtype, shards: int
) -> None:
    model = made(Headed, dtype)
    base = checkpoint(tmp_path / "base", model.state_dict(), shards)
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    expected = trained(model, tmp_path / "adapter", kind, train=("head",))
    report = surgery.fold_checkpoint(base, tmp_path / "adapter", tmp_path / "new")
    assert same_bits(everything(tmp_path / "new"), expected)
    assert not same_bits(everything(base), expected)
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before
    assert (tmp_path / "new" / "config.json").read_bytes() == before["config.json"]
    assert set(report.folded) == {f"body.{name}.weight" for name in ("qkv", "proj", "up")}
    assert set(report.replaced) == {"head.weight", "head.bias"}
    assert report.left_out == ("pytorch_model.bin",)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "base", "new"]


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def test_a_head_model_adapter_folds_into_a_bare_checkpoint_and_the_other_way(
    tmp_path: Path,
) -> None:
    model, body = made(Headed), made(Headed).body
    bare = checkpoint(tmp_path / "bare", body.state_dict(), 1)
    whole = checkpoint(tmp_path / "whole", model.state_dict(), 2)
    expected = trained(model, tmp_path / "headed")
    surgery.fold_checkpoint(bare, tmp_path / "headed", tmp_path / "one")
    within = {k: v for k, v in expected.items() if k.startswith("body.")}
    assert same_bits(prefixed(everything(tmp_path / "one"), "body."), within)
    of_body = trained(body, tmp_path / "bodily")
    surgery.fold_checkpoint(whole, tmp_path / "bodily", tmp_path / "two")
    found = everything(tmp_path / "two")
    assert same_bits(
        {k: v for k, v in found.items() if "head" not in k}, prefixed(of_body, "body.")
    )


def spoil_weight(base: Path) -> None:
    state = load_file(base / "model.safetensors")
    state["body.up.weight"][0, 0] += 1
    save_file(state, base / "model.safetensors")


def rename_weight(base: Path) -> None:
    state = load_file(base / "model.safetensors")
    state["body.other.weight"] = state.pop("body.up.weight")
    save_file(state, base / "model.safetensors")


def widen_head(base: Path) -> None:
    state = load_file(base / "model.safetensors")
    state["head.weight"] = torch.zeros(7, WIDTH)
    save_file(state, base / "model.safetensors")


def truncate(base: Path) -> None:
    path = base / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-300])


def lead_out(base: Path) -> None:
    index = {"weight_map": {"body.up.weight": "../base/model.safetensors"}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))


def index(base: Path, **extra: str) -> None:
    """Two shards, and an index that says more."""
    state = load_file(base / "model.safetensors")
    home = dict.fromkeys(state, "model.safetensors") | extra
    save_file({"body.up.weight": state["body.up.weight"]}, base / "second.safetensors")
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": home}))


def nest_deeply(base: Path) -> None:
    (base / "model.safetensors.index.json").write_text("[" * 100_000)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda base: index(base, **{"body.up.weight": "second.safetensors"}), "is both in"),
        (lambda base: index(base, lost="model.safetensors"), "lost in a file without it"),
        (nest_deeply, "RecursionError"),
        (spoil_weight, "another base: body.up.weight"),
        (rename_weight, "body.up.weight is not in it"),
        (widen_head, "head.weight"),
        (truncate, "cannot be read"),
        (lead_out, "out of the folder"),
        (lambda base: (base / "model.safetensors").unlink(), "no checkpoint"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_left(
    tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    model = made(Headed)
    base = checkpoint(tmp_path / "base", model.state_dict(), 1)
    trained(model, tmp_path / "adapter", train=("head",))
    spoil(base)
    with pytest.raises(CheckpointError, match=message):
        surgery.fold_checkpoint(base, tmp_path / "adapter", tmp_path / "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "base"]


def test_a_folder_in_use_is_not_written_over(tmp_path: Path) -> None:
    model = made(Headed)
    base = checkpoint(tmp_path / "base", model.state_dict(), 1)
    trained(model, tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="already"):
        surgery.fold_checkpoint(base, tmp_path / "adapter", base)
    (tmp_path / "empty").mkdir()
    surgery.fold_checkpoint(base, tmp_path / "adapter", tmp_path / "empty")
    inside = surgery.fold_checkpoint(base, tmp_path / "adapter", base / "inside")
    assert inside.left_out == ("pytorch_model.bin",)
    assert everything(tmp_path / "empty").keys() == everything(base).keys()


def test_a_weight_that_overflows_is_refused(tmp_path: Path) -> None:
    model = made(Headed, torch.float16)
    base = checkpoint(tmp_path / "base", model.state_dict(), 1)
    surgery.apply(
        model,
        {"select": [{"roles": ["mlp.up"]}], "adapter": {"kind": "lora", "rank": 2}},
        example_inputs=torch.zeros(2, 4, WIDTH, dtype=torch.float16),
    )
    with torch.no_grad():
        for _, adapter in adapters_of(model):
            adapter.B.fill_(1e6)
    surgery.save(model, tmp_path / "adapter")
    with pytest.raises(StateError, match="range of"):
        surgery.fold_checkpoint(base, tmp_path / "adapter", tmp_path / "new")
    assert not (tmp_path / "new").exists()
