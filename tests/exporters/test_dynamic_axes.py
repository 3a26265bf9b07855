"""Axes beyond batch and length, and ids of 32 bits."""

from __future__ import annotations

import onnx
import pytest
import timm
import torch
import transformers as hf

import exporters

pytestmark = pytest.mark.slow


def sizes(report: exporters.ExportReport, axis: str) -> set[int]:
    (verification, *_) = (file.verification for file in report.files)
    return {row.sizes[axis] for row in verification.parity}


def test_the_size_of_an_image_where_the_model_takes_any(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=7).eval()
    report = exporters.to_onnx(
        model,
        tmp_path / "model.onnx",
        target="portable",
        example_inputs=torch.randn(2, 3, 64, 96),
        dynamic={"x": {0: "batch", 2: "height", 3: "width"}},
    )
    assert (sizes(report, "height"), sizes(report, "width")) == ({64, 128}, {96, 192})


def test_the_size_of_an_image_of_a_transformer_that_interpolates_its_positions(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=1, embed_dim=32, num_heads=2, num_classes=3,
        dynamic_img_size=True,
    ).eval()  # fmt: skip
    report = exporters.to_onnx(
        model,
        tmp_path / "model.onnx",
        example_inputs=torch.randn(2, 3, 32, 48),
        dynamic={"x": {0: "batch", 2: "height", 3: "width"}},
    )
    assert (sizes(report, "height"), sizes(report, "width")) == ({32, 64}, {48, 96})
    assert report.fused == 1
    x = torch.randn(1, 3, 80, 16)
    session = exporters.open_session(tmp_path / "model.onnx")
    with torch.no_grad():
        torch.testing.assert_close(
            torch.from_numpy(session.run(None, {"x": x.numpy()})[0]), model(x), rtol=1e-4, atol=1e-5
        )


def test_two_towers_with_a_batch_each(tmp_path):
    torch.manual_seed(0)
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 60}
    image = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32}
    config = hf.CLIPConfig(
        text_config={**text, "intermediate_size": 64, "eos_token_id": 2},
        vision_config={**image, "intermediate_size": 64, "patch_size": 16},
        projection_dim=16,
    )
    ids = torch.randint(3, 60, (3, 8))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    texts = {0: "text_batch", 1: "sequence"}
    report = exporters.to_onnx(
        hf.CLIPModel(config).eval(),
        tmp_path / "model.onnx",
        example_inputs={**given, "pixel_values": torch.randn(2, 3, 32, 32)},
        dynamic={"input_ids": texts, "attention_mask": texts, "pixel_values": {0: "image_batch"}},
    )
    assert report.fused == len(report.sites) == 2
    assert sizes(report, "text_batch") == sizes(report, "image_batch") == {1, 2, 5}


def test_ids_of_32_bits(build, tmp_path):
    ids = torch.randint(1, 60, (2, 7), dtype=torch.int32)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    report = exporters.to_onnx(build("bert"), tmp_path / "model.onnx", example_inputs=given)
    assert report.fused == len(report.sites)
    graph = onnx.load(tmp_path / "model.onnx").graph
    kinds = {value.type.tensor_type.elem_type for value in graph.input}
    assert kinds == {onnx.TensorProto.INT32}
