"""Decoders whose positions are rotations, without a cache: on CPUs one operator does all of a site."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
import transformers as hf
from torch import nn

import exporters
from tests.exporters.conftest import enlivened
from tests.exporters.decoders import group_query

_TINY = {
    "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 32, "intermediate_size": 64, "vocab_size": 96, "max_position_embeddings": 40,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MODELS = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_TINY)),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**_TINY, sliding_window=20)),
    "phi3": lambda: hf.Phi3ForCausalLM(hf.Phi3Config(**_TINY)),
    "gemma2": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**_TINY, attn_logit_softcapping=2.0)),
}
_LONG = _TINY | {"max_position_embeddings": 128, "original_max_position_embeddings": 32}
_SCALES = {"short_factor": [1.0] * 16, "long_factor": [4.0] * 16, "factor": 4.0}


def longrope() -> nn.Module:
    """Rotations by other angles as soon as there are more than 32 positions."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, **_SCALES}
    rope["original_max_position_embeddings"] = 32
    return enlivened(lambda: hf.Phi3ForCausalLM(hf.Phi3Config(**_LONG, rope_parameters=rope)))


KEPT = torch.tensor([[1] * 33, [0] * 9 + [1] * 24])


def model_of(name: str) -> nn.Module:
    return enlivened(MODELS[name])


def check(model: nn.Module, path: Path) -> None:
    """Tokens at lengths and with padding in front that verification did not try."""
    ids = torch.randint(3, 96, KEPT.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=KEPT).logits
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    given = {"input_ids": ids.numpy(), "attention_mask": KEPT.numpy()}
    found = torch.from_numpy(session.run(["logits"], given)[0])
    tokens = KEPT.bool()
    torch.testing.assert_close(found[tokens], expected[tokens], rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, exporters.ExportReport]:
    model = model_of("llama")
    return model, exporters.to_onnx(model, tmp_path_factory.mktemp("llama") / "model.onnx")


def test_it_rotates_shares_heads_and_takes_one_product(llama):
    check_site(*llama, window=None)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "window"), [("mistral", 20), ("phi3", None), ("gemma2", 4096)])
def test_so_it_does_in_other_spellings(name, window, tmp_path):
    model = model_of(name)
    check_site(model, exporters.to_onnx(model, tmp_path / "model.onnx"), window=window)


def check_site(model: nn.Module, report: exporters.ExportReport, window: int | None) -> None:
    assert [site.operator for site in report.sites] == ["GroupQueryAttention"]
    (((query, key, value, past, *_), found),) = group_query(report.files[0].path)
    assert query and (key, value, past) == ("", "", "")
    assert (found["do_rotary"], found["num_heads"], found["kv_num_heads"]) == (1, 2, 1)
    assert found.get("local_window_size") == window
    for file in report.files:
        check(model, file.path)


def test_more_positions_than_its_tables_hold_are_announced_and_refused(llama):
    _, report = llama
    assert any("at up to 40 positions" in note for note in report.notes)
    session = ort.InferenceSession(report.files[0].path, providers=["CPUExecutionProvider"])
    given = [
        dict.fromkeys(("input_ids", "attention_mask"), np.ones((1, n), np.int64)) for n in (40, 41)
    ]
    assert np.isfinite(session.run(None, given[0])[0]).all()
    with pytest.raises(Exception, match="cos_cache"):
        session.run(None, given[1])


@pytest.mark.slow
def test_for_cuda_rotations_stay_outside(tmp_path):
    report = exporters.to_onnx(model_of("llama"), tmp_path / "model.onnx", target="cuda")
    assert [site.operator for site in report.sites] == ["MultiHeadAttention"]
    assert not any("positions" in note for note in report.notes)


captures_longrope = pytest.mark.skipif(
    torch.__version__ < (2, 15), reason="torch 2.11 captures no branch on the longest position"
)


@captures_longrope
def test_a_model_that_keeps_its_frequencies_computes_the_same_after_an_export(tmp_path):
    model, ids = longrope(), torch.arange(3, 43)[None]
    with torch.no_grad():
        expected = longrope()(ids).logits
        example = {"input_ids": ids[:, :16], "attention_mask": torch.ones_like(ids[:, :16])}
        exporters.to_onnx(model, tmp_path / "model.onnx", example_inputs=example, portable=False)
        assert "long_inv_freq" not in vars(model.model.rotary_emb)
        assert torch.equal(model(ids).logits, expected)


@captures_longrope
def test_rotations_that_depend_on_the_length_stay_outside(tmp_path):
    model, ids = longrope(), torch.arange(3, 43)[None]
    example = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    path = tmp_path / "model.onnx"
    report = exporters.to_onnx(model, path, example_inputs=example, portable=False)
    assert [site.operator for site in report.sites] == ["MultiHeadAttention"]
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    for length in (5, 32, 33):
        given = {name: value[:, :length] for name, value in example.items()}
        (found,) = session.run(None, {name: value.numpy() for name, value in given.items()})
        with torch.no_grad():
            expected = model(**given).logits
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)
