"""A causal language model with its cache: one file for prompt and tokens, and it generates what the model generates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import transformers as hf
from torch import nn

import exporters
from exporters.causal import decoder_step
from exporters.errors import ExportError
from tests.exporters.conftest import enlivened
from tests.exporters.decoders import group_query

_TINY = {
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 64,
    "vocab_size": 96,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_NO_GROUPS = {k: v for k, v in _TINY.items() if k not in {"num_key_value_heads", "head_dim"}}
_SLIDING = {**_TINY, "sliding_window": 5}
_GPTJ = {"n_embd": 64, "n_layer": 1, "n_head": 4, "rotary_dim": 16, "vocab_size": 96}
_GPT2 = {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 96, "n_positions": 64}

MODELS = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_TINY)),
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**_TINY)),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**_SLIDING)),
    "phi3": lambda: hf.Phi3ForCausalLM(hf.Phi3Config(**_TINY)),
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**_GPT2, bos_token_id=1, eos_token_id=2)),
    "gpt-j": lambda: hf.GPTJForCausalLM(  # casts its keys
        hf.GPTJConfig(**_GPTJ, n_positions=64, bos_token_id=1, eos_token_id=2)
    ),
    "gpt-neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**_NO_GROUPS, rotary_pct=1.0)),
    "gemma2": lambda: hf.Gemma2ForCausalLM(
        hf.Gemma2Config(**{**_SLIDING, "num_hidden_layers": 2}, attn_logit_softcapping=2.0)
    ),
}
_NEO = {
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 2,
    "vocab_size": 96,
    "intermediate_size": 32,
}
_NEO |= {"max_position_embeddings": 64, "window_size": 16, "bos_token_id": 1, "eos_token_id": 2}


def _neo(*kinds: str) -> nn.Module:
    """Whose caches do not say that attention is local."""
    kinds_of = [[list(kinds), 2 // len(kinds)]]
    return hf.GPTNeoForCausalLM(hf.GPTNeoConfig(**_NEO, attention_types=kinds_of))


NEO = {"gpt-neo": lambda: _neo("global", "local"), "gpt-neo, global": lambda: _neo("global")}
NARROW = {"narrow": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**{**_TINY, "head_dim": 12}))}
PROMPTS = torch.tensor([[5, 9, 7, 33, 60], [8, 5, 61, 0, 0]])
KEPT = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


def model_of(name: str) -> nn.Module:
    return enlivened((MODELS | NARROW | NEO)[name])


def generate(path: Path, ids: torch.Tensor, mask: torch.Tensor, count: int = 5) -> np.ndarray:
    """Greedy generation with nothing but ONNX Runtime."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    fixed = {i.name: i.shape for i in session.get_inputs() if i.name.startswith("past")}
    past = {n: np.zeros((len(ids), s[1], 0, s[3]), np.float32) for n, s in fixed.items()}
    last = mask.sum(1).numpy() - 1 if mask[:, 0].all() else np.full(len(ids), mask.shape[1] - 1)
    new, kept, found = ids.numpy(), mask.numpy(), []
    for _ in range(count):
        logits, *present = session.run(None, {"input_ids": new, "attention_mask": kept, **past})
        past = dict(zip(past, present, strict=True))
        new = logits[np.arange(len(new)), last].argmax(-1)[:, None]
        kept = np.concatenate([kept, np.ones_like(new)], 1)
        last = np.zeros(len(new), np.int64)
        found.append(new)
    return np.concatenate(found, 1)


def alone(model: nn.Module, count: int = 5) -> np.ndarray:
    """What the model generates for each prompt by itself, without a cache."""
    rows = []
    for row, keep in zip(PROMPTS, KEPT, strict=True):
        tokens = row[keep == 1][None]
        for _ in range(count):
            logits = model(input_ids=tokens, use_cache=False).logits
            tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], 1)
        rows.append(tokens[0, -count:].numpy())
    return np.stack(rows)


def padded(side: str) -> tuple[torch.Tensor, torch.Tensor]:
    if side == "right":
        return PROMPTS, KEPT
    shifted = [(t[0], t[1].roll(2)) for t in (PROMPTS, KEPT)]
    ids, kept = (torch.stack(rows) for rows in shifted)
    return ids, kept


def test_in_the_runtimes_own_convention_the_operator_rotates_and_counts(tmp_path):
    model = model_of("llama")
    report = exporters.to_onnx(model, tmp_path / "model.onnx", cache="right")
    assert report.fused == len(report.sites) == 1
    (((query, key, value, *_), found),) = group_query(tmp_path / "model.onnx")
    assert found["do_rotary"] == 1
    assert (found["num_heads"], found["kv_num_heads"]) == (4, 2)
    assert query and (key, value) == ("", "")  # one product makes all three
    assert any("of 1 sites come from one matrix product" in note for note in report.notes)
    for file in report.files:
        assert file.verification.top1 == 1.0
        np.testing.assert_array_equal(generate(file.path, *padded("right")), alone(model))
    session = ort.InferenceSession(tmp_path / "model.onnx")
    names = [i.name for i in session.get_inputs()]
    past = ["past_key_values.0.key", "past_key_values.0.value"]
    assert names == ["input_ids", "attention_mask", *past]
    assert [o.name for o in session.get_outputs()] == ["logits", "present.0.key", "present.0.value"]
    ids, kept = padded("left")
    empty = dict.fromkeys(past, np.zeros((2, 2, 0, 16), np.float32))
    given = {"input_ids": ids.numpy(), "attention_mask": kept.numpy(), **empty}
    logits = session.run(["logits"], given)[0]
    assert np.isnan(logits[1]).all()
    assert np.isfinite(logits[0]).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("cache", [True, "right"])
def test_what_is_generated_is_what_the_model_generates(name, cache, tmp_path):
    model = model_of(name)
    report = exporters.to_onnx(model, tmp_path / "model.onnx", cache=cache)
    assert report.fused == len(report.sites)
    found = [attributes for _, attributes in group_query(tmp_path / "model.onnx")]
    assert len(found) == len(report.sites)
    sliding = name in {"mistral", "gemma2"}
    sides = ["right"] if cache == "right" else ["left", "right"]
    sides = [side for side in sides if not (sliding and side == "right")]
    for file in report.files:
        for side in sides:
            np.testing.assert_array_equal(generate(file.path, *padded(side)), alone(model))
    windows = {"mistral": {5}, "gemma2": {5, None}}.get(name, {None})
    assert {each.get("local_window_size") for each in found} == windows
    assert {each.get("softcap") for each in found} == {2.0 if name == "gemma2" else None}


@pytest.mark.slow
def test_a_cache_that_the_operator_does_not_reach_stays_outside(tmp_path):
    model = model_of("narrow")
    report = exporters.to_onnx(model, tmp_path / "model.onnx", cache=True)
    assert [site.operator for site in report.sites] == ["MultiHeadAttention"]
    for file in report.files:
        for side in ("left", "right"):
            np.testing.assert_array_equal(generate(file.path, *padded(side)), alone(model))


@pytest.mark.slow
def test_a_wrong_soft_cap_is_found_and_nothing_is_handed_over(tmp_path, monkeypatch):
    from exporters.patterns.group_query import GroupQueryMatch

    kept = GroupQueryMatch._attributes

    def wrong(self):
        return {**kept(self), "softcap": 1.0}

    monkeypatch.setattr(GroupQueryMatch, "_attributes", wrong)
    with pytest.raises(exporters.VerificationError, match="logits differs"):
        exporters.to_onnx(model_of("gemma2"), tmp_path / "model.onnx", cache=True)
    assert {f.name for f in tmp_path.iterdir()} == {"model.rejected.onnx", "model.rejected.json"}


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"adapters": "runtime"}, "adapters='runtime'"),
        ({"example_inputs": PROMPTS}, "example_inputs"),
        ({"dynamic": False}, "dynamic"),
        ({"cache": "both"}, "'both'"),
    ],
)
def test_what_does_not_go_with_a_cache_is_refused(given, reason, tmp_path):
    with pytest.raises(ExportError, match=reason):
        exporters.to_onnx(model_of("gpt2"), tmp_path / "a.onnx", **{"cache": True, **given})
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_keeps_no_tokens_is_refused(build):
    with pytest.raises(ExportError, match="cannot be exported with a cache"):
        decoder_step(build("bert"), True)


@pytest.mark.parametrize(
    ("cache", "name", "padding"),
    [
        (True, "gpt2", "either"),
        ("right", "gpt2", "right"),
        (True, "mistral", "left"),
        ("right", "mistral", "none"),
        (True, "gpt-neo", "left"),
        ("right", "gpt-neo", "none"),
        (True, "gpt-neo, global", "either"),
        ("right", "gpt-neo, global", "right"),
    ],
)
def test_rows_padded_where_they_may_not_be_get_no_number(cache, name, padding):
    step = decoder_step(model_of(name), cache).eval()
    assert step.padding == padding
    for side in ("left", "right"):
        ids, kept = padded(side)
        with torch.no_grad():
            past = {k.replace(".", "_"): v for k, v in step.past(2).items()}
            logits = step(input_ids=ids, attention_mask=kept, **past)["logits"]
        assert logits[0].isfinite().all()
        assert logits[1].isnan().all() == (padding not in {"either", side})


HOLE = [[1, 0, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0]]


def test_a_hole_in_a_prompt_is_padding_where_it_may_not_be(tmp_path):
    model, path = model_of("llama"), tmp_path / "model.onnx"
    exporters.to_onnx(model, path, cache="right")
    past = {
        f"past_key_values.0.{part}": np.zeros((3, 2, 0, 16), np.float32)
        for part in ("key", "value")
    }
    ids = torch.randint(60, (3, 4)).numpy()
    for file in (path, path.with_suffix(".portable.onnx")):
        session = exporters.open_session(file)
        given = {"input_ids": ids, "attention_mask": np.array(HOLE)}
        logits, key, value = session.run(None, {**given, **past})
        assert [bool(np.isnan(row).all()) for row in logits] == [True, False, False]
        # Old padding is no hole, nor is what stands at the end of a new piece: the next token takes its place.
        for new, wrong in (([[1]], False), ([[1, 1]], False), ([[1, 0]], False), ([[0, 1]], True)):
            mask = np.concatenate([np.array(HOLE)[2:], new], 1)
            step = {"input_ids": ids[2:, : len(new[0])], "attention_mask": mask}
            cached = dict(zip(past, (key[2:], value[2:]), strict=True))
            found = session.run(["logits"], {**step, **cached})[0]
            assert bool(np.isnan(found).all()) is wrong


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_padded_prompts_may_be_fed_token_by_token(name, tmp_path):
    """A row's padding must not take the place of its last token."""
    model, path = model_of(name), tmp_path / "model.onnx"
    exporters.to_onnx(model, path, cache="right", portable=False, verify=False)
    session = exporters.open_session(path)
    shapes = {i.name: i.shape for i in session.get_inputs() if i.name.startswith("past")}
    past = {n: np.zeros((2, shape[1], 0, shape[3]), np.float32) for n, shape in shapes.items()}
    next_ids = [[44], [70]]
    ids = torch.cat([PROMPTS, torch.tensor(next_ids)], 1)
    kept = torch.cat([KEPT, torch.ones(2, 1, dtype=torch.int64)], 1)
    for place in range(ids.shape[1]):
        given = {
            "input_ids": ids[:, [place]].numpy(),
            "attention_mask": kept[:, : place + 1].numpy(),
        }
        logits, *present = session.run(None, {**given, **past})
        past = dict(zip(past, present, strict=True))
    for row, tokens, keep in zip(logits, ids, kept, strict=True):
        with torch.no_grad():
            wanted = model(input_ids=tokens[keep == 1][None], use_cache=False).logits[0, -1:]
        torch.testing.assert_close(torch.from_numpy(row), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_under_fp16_the_cache_has_half_the_bytes_and_generates_the_same(tmp_path):
    model, path = model_of("llama"), tmp_path / "model.onnx"
    report = exporters.to_onnx(model, path, precision="fp16", cache=True)
    assert "inputs and outputs in fp32, the cache in fp16" in report.notes[0]
    assert report.files[0].verification.top1 == 1.0
    graph = onnx.load(path).graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)}
    cached = {name for name in kinds if name.startswith(("past_key_values.", "present."))}
    assert len(cached) == 4
    assert {kinds[name] for name in cached} == {onnx.TensorProto.FLOAT16}
    assert kinds["logits"] == onnx.TensorProto.FLOAT
