"""The DINOv2 backbone: what is read out of an ONNX file is the model that was written into it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

from examples import dinov2
from examples.assets import AssetError

WIDTH, DEPTH, SIZE = 24, 2, 28
OLD_NAMES = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
}
"""What transformers called them when the file was exported."""


@pytest.fixture
def theirs() -> Dinov2Model:
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=2, image_size=SIZE
    )
    model = Dinov2Model(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def old_names(model: Dinov2Model) -> dict[str, Tensor]:
    weights = {k: v for k, v in model.state_dict().items() if "mask_token" not in k}
    for new, old in OLD_NAMES.items():
        weights = {key.replace(new, old): value for key, value in weights.items()}
    return weights


def write_onnx(weights: dict[str, Tensor], path: Path) -> Path:
    """What an exporter makes of a backbone: transposed, anonymous weights beside biases that kept their names."""
    tensors, nodes = [], []
    for name, value in weights.items():
        bias = name.replace(".weight", ".bias")
        linear = name.endswith(".weight") and value.ndim == 2
        if linear:
            anonymous = f"onnx::MatMul_{len(tensors)}"
            product = f"product_{len(tensors)}"
            operands = [f"backbone.{bias}", product][:: 1 if len(nodes) % 4 else -1]
            nodes.append(helper.make_node("MatMul", ["x", anonymous], [product]))
            nodes.append(helper.make_node("Add", operands, [f"sum_{len(tensors)}"]))
            tensors.append(numpy_helper.from_array(value.T.contiguous().numpy(), anonymous))
        elif name == "embeddings.position_embeddings":
            tensors.append(numpy_helper.from_array(value[:, 1:].numpy(), "onnx::Reshape_1"))
            tensors.append(numpy_helper.from_array(value[:, :1].numpy(), "onnx::Concat_1"))
        else:
            tensors.append(numpy_helper.from_array(value.numpy(), f"backbone.{name}"))
    tensors.append(numpy_helper.from_array(np.zeros((3, 3), np.float32), "decoder.weight"))
    nodes.append(helper.make_node("MatMul", ["x", "decoder.weight"], ["y"]))
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [value], [], tensors)), path)
    return path


def test_an_onnx_backbone_becomes_the_same_function_in_timm(
    theirs: Dinov2Model, tmp_path: Path
) -> None:
    weights = old_names(theirs)
    ours = VisionTransformer(
        img_size=SIZE,
        patch_size=14,
        embed_dim=WIDTH,
        depth=DEPTH,
        num_heads=2,
        init_values=1.0,
        num_classes=0,
    ).eval()
    read = dinov2.read_backbone(write_onnx(weights, tmp_path / "backbone.onnx"))
    ours.load_state_dict(dinov2.to_timm(read), strict=True)
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.inference_mode():
        torch.testing.assert_close(
            ours.forward_features(images), theirs(images).last_hidden_state, rtol=1e-4, atol=1e-4
        )


def test_a_file_without_position_embeddings_is_refused(theirs: Dinov2Model, tmp_path: Path) -> None:
    weights = old_names(theirs)
    del weights["embeddings.position_embeddings"]
    with pytest.raises(AssetError, match="position embeddings"):
        dinov2.read_backbone(write_onnx(weights, tmp_path / "backbone.onnx"))


@pytest.mark.download
def test_the_real_backbone_computes_what_its_onnx_file_computes() -> None:
    """Run the shipped ONNX file up to the last layer norm, at 112 px with the same position embeddings."""
    import onnxruntime

    model = dinov2.build(num_classes=10, image_size=224)
    file = onnx.load(dinov2.fetch("dinov2-s14"))
    normalised = next(
        node.output[0] for node in file.graph.node if "backbone.layernorm.bias" in node.input
    )
    positions = next(n.output[0] for n in file.graph.node if "onnx::Concat_1957" in n.input)
    del file.graph.output[:]
    file.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in (normalised, positions)
    )
    session = onnxruntime.InferenceSession(
        file.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    expected, table = map(torch.from_numpy, session.run(None, {"input_image": images.numpy()}))
    model.pos_embed.data = table
    with torch.inference_mode():
        torch.testing.assert_close(model.forward_features(images), expected, rtol=1e-4, atol=1e-4)
