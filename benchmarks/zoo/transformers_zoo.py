"""transformers: every model type of ``MODEL_MAPPING``, as a small random base model, and its common heads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from benchmarks.zoo.examine import Specimen
from benchmarks.zoo.overrides import OVERRIDES
from benchmarks.zoo.particular_inputs import particular_inputs
from benchmarks.zoo.tiny import shallow, tiny
from surgery.anatomy.inputs import ExampleInputs, example_inputs

_HEADS = {
    "causal-lm": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "sequence": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "image": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "ctc": "MODEL_FOR_CTC_MAPPING_NAMES",
    "detection": "MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES",
    "segmentation": "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES",
}


class Transformers:
    """Names are ``bert`` for the base model and ``bert:sequence`` for one with a head."""

    def names(self) -> list[str]:
        """Every base model, then every base model with each of its common heads."""
        bases = sorted(modeling_auto.MODEL_MAPPING_NAMES)
        heads = [
            f"{kind}:{head}"
            for head, mapping in _HEADS.items()
            for kind in getattr(modeling_auto, mapping)
            if kind in CONFIG_MAPPING_NAMES
        ]
        return bases + sorted(heads)

    def family(self, name: str) -> str:
        """The model type."""
        return name.partition(":")[0]

    def specimens(self, name: str) -> Iterator[Specimen]:
        """A random instance of each small configuration of which an instance runs."""
        kind, first, made = _model_class(name), None, 0
        for how, config in _configurations(name):
            try:
                model = kind(_own(config(), kind)).eval()
                given = particular_inputs(name, model.config)
                specimen = Specimen(model, _running_inputs(model, given), how)
            except Exception as error:
                first = first or error
                continue
            made += 1
            yield specimen
        if not made:
            raise first or RuntimeError("no configuration")


def _running_inputs(model: nn.Module, given: dict[str, Tensor] | None) -> ExampleInputs:
    inputs = example_inputs(model, given)
    with torch.no_grad():
        model(*inputs.args, **inputs.kwargs)
    return inputs


def _model_class(name: str) -> type[nn.Module]:
    kind, _, head = name.partition(":")
    table = getattr(modeling_auto, _HEADS[head] if head else "MODEL_MAPPING_NAMES")
    names: Any = table[kind]
    found: type[nn.Module] = getattr(transformers, names if isinstance(names, str) else names[0])
    return found


def _own(config: Any, kind: type[nn.Module]) -> Any:
    """The configuration, or the part of it that the model takes: a language model's of a composite."""
    wanted: Any = getattr(kind, "config_class", None)
    if wanted is None or isinstance(config, wanted):
        return config
    parts = (getattr(config, name, None) for name in config.sub_configs)
    return next((part for part in parts if isinstance(part, wanted)), config)


def _configurations(name: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Small in every way, then only shallow; smaller ones may not fit together."""
    kind = name.partition(":")[0]
    config: Any = getattr(transformers, CONFIG_MAPPING_NAMES[kind])
    overrides = OVERRIDES.get(name, OVERRIDES.get(kind, {}))
    yield "tiny configuration, each kind of layer", lambda: tiny(config(), overrides)
    yield "tiny configuration", lambda: tiny(config(), overrides, kinds=False)
    yield "shallow configuration", lambda: shallow(config())
