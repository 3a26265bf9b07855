"""Checkpoints whose names the model does not have: found by role, block and shape, or refused."""

from __future__ import annotations

import copy
import re

import peft
import pytest
import safetensors.torch
import timm
import torch
import transformers as hf
from torch import nn

import exporters
import surgery
from exporters.errors import ExportError
from exporters.peft_bridge import TENSORS
from exporters.peft_names import FUSED, blocks, role_word
from policies.roles import Role

IMAGE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
OLD_NAMES = {
    r"vit\.layers\.(\d+)\.attention\.(q|k|v)_proj": r"vit.encoder.layer.\1.attention.attention.\2",
    r"vit\.layers\.(\d+)\.attention\.o_proj": r"vit.encoder.layer.\1.attention.output.dense",
    r"vit\.layers\.(\d+)\.mlp\.fc1": r"vit.encoder.layer.\1.intermediate.dense",
    r"vit\.layers\.(\d+)\.mlp\.fc2": r"vit.encoder.layer.\1.output.dense",
}
"""How transformers 4 called the modules that transformers 5 renamed."""
LETTERS = {"q": "query", "k": "key", "v": "value"}


def hf_vit() -> hf.ViTForImageClassification:
    torch.manual_seed(0)
    config = hf.ViTConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64,
        image_size=32, patch_size=16, num_labels=5, layer_norm_eps=1e-6,
    )  # fmt: skip
    return hf.ViTForImageClassification(config).eval()


def timm_vit(like: hf.ViTForImageClassification) -> nn.Module:
    """timm's model of the same weights: one fused qkv where transformers has three projections."""
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=3, embed_dim=32, num_heads=2, mlp_ratio=2,
        num_classes=5,
    )  # fmt: skip
    theirs = like.state_dict()
    state = {
        "cls_token": theirs["vit.embeddings.cls_token"],
        "pos_embed": theirs["vit.embeddings.position_embeddings"],
    }
    pairs = {
        "patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
        "norm": "vit.layernorm",
        "head": "classifier",
    }
    for i in range(3):
        pairs |= {
            f"blocks.{i}.norm{n}": f"vit.layers.{i}.layernorm_{w}"
            for n, w in ((1, "before"), (2, "after"))
        }
        pairs |= {f"blocks.{i}.mlp.fc{n}": f"vit.layers.{i}.mlp.fc{n}" for n in (1, 2)}
        pairs[f"blocks.{i}.attn.proj"] = f"vit.layers.{i}.attention.o_proj"
    for part in ("weight", "bias"):
        state |= {f"{ours}.{part}": theirs[f"{name}.{part}"] for ours, name in pairs.items()}
        for i in range(3):
            three = [theirs[f"vit.layers.{i}.attention.{n}_proj.{part}"] for n in "qkv"]
            state[f"blocks.{i}.attn.qkv.{part}"] = torch.cat(three)
    model.load_state_dict(state)
    return model.eval()


def trained(model: nn.Module, folder, targets: list[str], **options) -> nn.Module:
    """A checkpoint written by PEFT itself, with factors that are not zero."""
    torch.manual_seed(1)
    config = peft.LoraConfig(
        r=2, lora_alpha=6, target_modules=targets, init_lora_weights=False, **options
    )
    theirs = peft.get_peft_model(copy.deepcopy(model), config)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(0.1)
    theirs.save_pretrained(folder)
    return theirs.eval()


def rename(folder, names: dict[str, str]) -> None:
    """Give a checkpoint other names, as an older library would have."""
    path = folder / TENSORS
    renamed = {}
    for key, value in safetensors.torch.load_file(path).items():
        for pattern, new in names.items():
            key = re.sub(pattern, new, key)
        key = re.sub(
            r"attention\.attention\.([qkv])\b",
            lambda m: f"attention.attention.{LETTERS[m[1]]}",
            key,
        )
        renamed[key] = value
    safetensors.torch.save_file(renamed, path)


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found = model(IMAGE)
    return found if isinstance(found, torch.Tensor) else found.logits


ATTENTION = ["q_proj", "v_proj", "o_proj"]


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], [*ATTENTION, "k_proj", "fc1", "fc2"]])
def test_a_transformers_4_checkpoint_on_the_renamed_model(targets, tmp_path):
    model = hf_vit()
    expected = logits(trained(model, tmp_path, targets, modules_to_save=["classifier"]))
    rename(tmp_path, OLD_NAMES)
    exporters.from_peft(model, tmp_path)
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-4)
    notes = surgery.summary(model).plan.notes
    assert (
        "vit.encoder.layer.*.attention.attention.query -> vit.layers.*.attention.q_proj "
        "(attention.query) by structure, 3 in all" in notes
    )
    assert len(notes) == len(targets)
    surgery.fold(model)
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-4)


def test_separate_projections_find_their_rows_of_a_fused_one(tmp_path):
    """A checkpoint of transformers' ViT on timm's: PEFT itself cannot do that."""
    base = hf_vit()
    fused = timm_vit(base)
    torch.testing.assert_close(logits(fused), logits(base), atol=1e-5, rtol=1e-4)
    targets = [*ATTENTION, "fc1"]
    expected = logits(trained(base, tmp_path, targets, modules_to_save=["classifier"]))
    exporters.from_peft(fused, tmp_path)
    assert not torch.allclose(expected, logits(base), atol=1e-2)
    torch.testing.assert_close(logits(fused), expected, atol=1e-5, rtol=1e-4)
    assert "classifier.weight -> head.weight" in surgery.summary(fused).plan.notes
    report = exporters.to_onnx(fused, tmp_path / "m.onnx", target="portable", samples=IMAGE)
    assert report.files[0].verification.top1 == 1.0
    exporters.to_peft(fused, tmp_path / "fused")
    again = peft.PeftModel.from_pretrained(timm_vit(base), tmp_path / "fused")
    torch.testing.assert_close(logits(again.eval()), expected, atol=1e-5, rtol=1e-4)


def test_some_layers_only(tmp_path):
    model = hf_vit()
    options = {"layers_to_transform": [1, 2], "layers_pattern": "layers"}
    expected = logits(trained(model, tmp_path, ["q_proj"], **options))
    rename(tmp_path, OLD_NAMES)
    exporters.from_peft(model, tmp_path)
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-4)


def test_the_match_is_told_before_anything_is_touched(tmp_path):
    model = hf_vit()
    trained(model, tmp_path, ["v_proj", "fc2"])
    rename(tmp_path, {r"vit\.layers\.(\d+)\.mlp\.fc2": r"vit.layers.\1.output.dense"})
    found = exporters.match_peft(model, tmp_path)
    told = {
        row["theirs"]: (row["module"], row["role"], row["by"]) for row in found.to_dict()["matches"]
    }
    assert told["vit.layers.1.output.dense"] == ("vit.layers.1.mlp.fc2", "mlp.down", "structure")
    assert told["vit.layers.1.attention.v_proj"][2] == "name"
    assert "_surgery" not in model.__dict__


@pytest.mark.parametrize(
    ("new", "reason"),
    [
        (r"vit.layers.\1.something", "read as projection of block 0, 32 -> 32: the model has 4 of them fit"),
        (r"vit.layers.7\1.query", "read as attention.query of block 70"),
        (r"vit.layers.\1.fc1", "mlp.up of block 0, 32 -> 32: the model has none of that shape"),
        (r"vit.layers.\1.sub.\1.query", "nothing tells which of the model's blocks"),
        ("query", "read as attention.query, 32 -> 32"),
    ],
    ids=["role", "block", "shape", "nested", "unnumbered"],
)  # fmt: skip
def test_what_could_be_several_or_is_nowhere_is_refused(new, reason, tmp_path):
    model = hf_vit()
    before = copy.deepcopy(model.state_dict())
    options = {"layers_to_transform": [0], "layers_pattern": "layers"}
    trained(model, tmp_path, ["q_proj"], **({} if "sub" in new else options))
    if "sub" in new:
        new = r"vit.layers.\1.sub.\1.query"
    rename(tmp_path, {r"vit\.layers\.(\d+)\.attention\.q_proj": new})
    if "sub" in new:  # two numbers that count, of fewer pairs than there are blocks
        path = tmp_path / TENSORS
        tensors = safetensors.torch.load_file(path)
        safetensors.torch.save_file({k: v for k, v in tensors.items() if "layers.2" not in k}, path)
    with pytest.raises(ExportError, match=reason):
        exporters.from_peft(model, tmp_path)
    assert "_surgery" not in model.__dict__
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_wordless_name_is_not_taken_for_another_layer_of_the_same_shape(tmp_path):
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 24, batch_first=True), 2)
    x = torch.randn(1, 3, 8)
    trained(model, tmp_path, ["linear1"])
    rename(tmp_path, {r"\.linear1": ".self_attn"})
    with pytest.raises(ExportError, match=r"2 of them fit .*linear1.*in_proj_weight 8 -> 24"):
        exporters.from_peft(model, tmp_path, example_inputs=x)


def test_the_caller_has_the_last_word(tmp_path):
    model = hf_vit()
    options = {"layers_to_transform": [1], "layers_pattern": "layers"}
    expected = logits(trained(model, tmp_path, ["v_proj"], **options))
    rename(tmp_path, {r"vit\.layers\.1\.attention\.v_proj": "vit.layers.1.something"})
    names = {"vit.layers.1.something": "vit.layers.1.attention.v_proj"}
    exporters.from_peft(model, tmp_path, names=names)
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(ExportError, match="nearest is"):
        exporters.match_peft(hf_vit(), tmp_path, names={"vit.layers.1.something": "vit.layers.1.x"})


def test_two_modules_for_one_projection_are_refused(tmp_path):
    model = hf_vit()
    trained(model, tmp_path, ["q_proj"])
    path = tmp_path / TENSORS
    tensors = safetensors.torch.load_file(path)
    tensors |= {key.replace("q_proj", "query"): value.clone() for key, value in tensors.items()}
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(ExportError, match="would both adapt"):
        exporters.from_peft(model, tmp_path)


def test_towers_are_told_apart_by_the_words_before_the_block(tmp_path):
    small = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = hf.CLIPConfig(
        text_config={**small, "vocab_size": 50, "max_position_embeddings": 16, "eos_token_id": 49},
        vision_config={**small, "image_size": 32, "patch_size": 16},
        projection_dim=16,
    )
    torch.manual_seed(0)
    model = hf.CLIPModel(config).eval()
    trained(model, tmp_path, r"vision_model.*q_proj")
    rename(tmp_path, {r"vision_model\.(.*)\.q_proj": r"vision_model.\1.to_q"})
    found = exporters.match_peft(model, tmp_path)
    assert {m.projection.module for m in found.matches} == {
        name for name, _ in model.named_modules() if "vision" in name and name.endswith("q_proj")
    }
    assert [m.by for m in found.matches] == ["structure"] * 2


@pytest.mark.parametrize(
    ("path", "role"),
    [
        ("bert.encoder.layer.0.attention.self.query", Role.QUERY),
        ("bert.encoder.layer.0.attention.output.dense", Role.ATTENTION_OUTPUT),
        ("bert.encoder.layer.0.intermediate.dense", Role.UP),
        ("bert.encoder.layer.0.output.dense", Role.DOWN),
        ("transformer.h.3.attn.c_attn", FUSED),
        ("transformer.h.3.attn.c_proj", Role.ATTENTION_OUTPUT),
        ("transformer.h.3.mlp.c_proj", Role.DOWN),
        ("blocks.2.attn.proj", Role.ATTENTION_OUTPUT),
        ("unet.to_out.0", Role.ATTENTION_OUTPUT),
        ("model.layers.1.mlp.gate_proj", Role.GATE),
        ("classifier", Role.HEAD),
        ("patch_embed.proj", None),
        ("something.else", None),
    ],
)
def test_role_words(path, role):
    assert role_word(path) == role


def test_block_numbers():
    flat = ["m.layer.3.q", "m.layer.10.q", "m.layer.10.v", "head"]
    assert blocks(flat, {"m.layer": 12}) == {
        "m.layer.3.q": 3,
        "m.layer.10.q": 10,
        "m.layer.10.v": 10,
        "head": None,
    }
    constant = ["d.block.0.layer.1.q", "d.block.4.layer.1.q"]
    assert list(blocks(constant, {"d.block": 6}).values()) == [0, 4]
    staged = ["s.0.blocks.0.q", "s.0.blocks.1.q", "s.1.blocks.0.q", "s.1.blocks.1.q"]
    assert list(blocks(staged, {"s": 4}).values()) == [0, 1, 2, 3]
    assert set(blocks(staged, {"s": 5}).values()) == {None}
