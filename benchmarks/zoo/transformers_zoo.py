"""transformers: every model type of ``MODEL_MAPPING``, as a small random base model, and its common heads."""

from __future__ import annotations

from typing import Any

import transformers
from torch import nn
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from benchmarks.zoo.examine import Specimen
from benchmarks.zoo.tiny import tiny

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

    def build(self, name: str) -> Specimen:
        """A random instance of a small configuration."""
        kind = _model_class(name)
        return Specimen(kind(_small_config(self.family(name))).eval(), None, "tiny configuration")


def _model_class(name: str) -> type[nn.Module]:
    kind, _, head = name.partition(":")
    table = getattr(modeling_auto, _HEADS[head] if head else "MODEL_MAPPING_NAMES")
    names: Any = table[kind]
    found: type[nn.Module] = getattr(transformers, names if isinstance(names, str) else names[0])
    return found


def _small_config(kind: str) -> Any:
    config: Any = getattr(transformers, CONFIG_MAPPING_NAMES[kind])
    return tiny(config())
