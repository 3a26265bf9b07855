"""How the zoo makes its small instances: parts of composites, inputs of a head before those of its type."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import transformers
from torch import nn

from benchmarks.zoo.examine import _verdict
from benchmarks.zoo.particular_inputs import particular_inputs
from benchmarks.zoo.record import PARTIAL, PROVED, Record
from benchmarks.zoo.transformers_zoo import _model_class, _own, _running_inputs


def test_a_language_model_of_a_composite_takes_its_part_of_the_configuration() -> None:
    config = transformers.Llama4Config()
    kind = _model_class("llama4:causal-lm")
    assert _own(config, kind) is config.text_config
    assert _own(config.text_config, kind) is config.text_config


def test_a_class_that_transformers_does_not_export_is_found() -> None:
    assert _model_class("voxtral_realtime_text").__name__ == "VoxtralRealtimeTextModel"


def test_inputs_of_a_head_come_before_those_of_its_type() -> None:
    config = SimpleNamespace(d_model=8)
    asked = ("perceiver:image", "perceiver", "perceiver:another", "bert")
    names = [set(particular_inputs(name, config) or ()) for name in asked]
    assert names == [{"pixel_values"}, {"inputs"}, {"inputs"}, set()]


def test_a_model_without_a_forward_says_so() -> None:
    with pytest.raises(RuntimeError, match="no forward"):
        _running_inputs(nn.Module(), None)


def test_what_ran_for_nothing_is_no_miss() -> None:
    anatomy = SimpleNamespace(unplaced=())
    seen = SimpleNamespace(refuted=(), unseen=(), run=3, read=2)
    assert _verdict(anatomy, SimpleNamespace(**vars(seen), idle=1))[0] == PROVED  # type: ignore[arg-type]
    assert _verdict(anatomy, SimpleNamespace(**vars(seen), idle=0))[0] == PARTIAL  # type: ignore[arg-type]
    assert "idle" not in Record("m").to_dict() and Record("m", idle=1).to_dict()["idle"] == 1
