"""What models are for: tokens, features, two gigabytes. Each kind exported, fused and compared once."""

from __future__ import annotations

import onnx
import pytest
import timm
import torch
import transformers as hf
from torch import nn

import exporters

pytestmark = pytest.mark.slow

_SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
_TEXT = {**_SMALL, "vocab_size": 60, "max_position_embeddings": 64}
_IMAGE = {**_SMALL, "image_size": 32, "patch_size": 16}
_VIT = {"img_size": 32, "depth": 1, "embed_dim": 32, "num_heads": 2, "num_classes": 0}

TASKS = {
    "token classification": (
        lambda: hf.BertForTokenClassification(hf.BertConfig(**_TEXT, num_labels=5)),
        {"logits": ["batch", "sequence", 5]},
    ),
    "question answering": (
        lambda: hf.RobertaForQuestionAnswering(hf.RobertaConfig(**_TEXT, pad_token_id=1)),
        {"start_logits": ["batch", "sequence"], "end_logits": ["batch", "sequence"]},
    ),
    "text features": (
        lambda: hf.BertModel(hf.BertConfig(**_TEXT)),
        {"last_hidden_state": ["batch", "sequence", 32], "pooler_output": ["batch", 32]},
    ),
    "image features": (
        lambda: hf.ViTModel(hf.ViTConfig(**_IMAGE), add_pooling_layer=False),
        {"last_hidden_state": ["batch", 5, 32]},
    ),
    "image features without a head": (
        lambda: timm.create_model("vit_tiny_patch16_224", **_VIT),
        {"output": ["batch", 32]},
    ),
    "image tokens, unpooled": (
        lambda: timm.create_model("vit_tiny_patch16_224", **_VIT, global_pool=""),
        {"output": ["batch", 5, 32]},
    ),
}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_its_outputs(task, tmp_path):
    torch.manual_seed(0)
    make, outputs = TASKS[task]
    report = exporters.to_onnx(make().eval(), tmp_path / "model.onnx")
    assert report.passed and report.fused == len(report.sites) == 1
    found = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in onnx.load(tmp_path / "model.onnx").graph.output
    }
    assert found == outputs


def test_weights_beyond_two_gigabytes_lie_beside_the_file(tmp_path):
    """Protobuf ends there; everything is checked by path."""
    torch.manual_seed(0)
    with torch.no_grad():
        model = nn.Sequential(*(nn.Linear(16500, 16500, bias=False) for _ in range(2))).eval()
    bytes_ = sum(p.nbytes for p in model.parameters())
    assert bytes_ > 2**31
    x = torch.randn(2, 16500)
    report = exporters.to_onnx(
        model, tmp_path / "model.onnx", target="portable", example_inputs=x, dynamic=False
    )
    assert {f.name for f in tmp_path.iterdir()} == {"model.onnx", "model.onnx.data", "model.md"}
    assert report.passed and report.files[0].bytes > bytes_
    assert (tmp_path / "model.onnx").stat().st_size < 100_000
    onnx.checker.check_model(tmp_path / "model.onnx")
    repository = exporters.triton_repository(tmp_path / "model.onnx", tmp_path / "repository")
    moved = repository / "1" / "model.onnx"
    (found,) = exporters.open_session(moved).run(None, {"input": x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), model(x), rtol=1e-4, atol=1e-5)
