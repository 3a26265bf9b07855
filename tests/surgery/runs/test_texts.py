"""Whether a model can learn texts, and with which tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from surgery.errors import RunError
from surgery.runs.schema import RunSpec
from surgery.runs.texts import check_causal, check_reader, tokenizer_of

WORDS = ["[PAD]", "[UNK]", "good", "bad", "film"]
BERT = {
    "vocab_size": 9, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 16,
}  # fmt: skip
GPT = GPT2Config(vocab_size=9, n_embd=16, n_layer=1, n_head=2)


def tokenizer(words: list[str]) -> Any:
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **named)


def spec(folder: Path) -> RunSpec:
    plain = {"model": f"hf:{folder}", "policy": "text-attn-qv", "data": {"table": "t.csv"}}
    return RunSpec.model_validate(plain | {"output": {"folder": "runs"}})


def test_a_folder_with_a_model_and_no_tokenizer_is_refused(tmp_path: Path) -> None:
    BertForSequenceClassification(BertConfig(**BERT)).save_pretrained(tmp_path)
    with pytest.raises(RunError, match=r"knows no words|cannot be loaded") as caught:
        tokenizer_of(spec(tmp_path))
    assert "data.tokenizer" in str(caught.value.remedy)
    tokenizer(WORDS).save_pretrained(tmp_path)
    assert len(tokenizer_of(spec(tmp_path))) == len(WORDS)


def test_a_tokenizer_with_more_words_than_the_model_is_refused() -> None:
    model = GPT2LMHeadModel(GPT)
    check_reader(model, tokenizer(WORDS), "gpt")
    with pytest.raises(RunError, match="another model's"):
        check_reader(model, tokenizer([*WORDS, *"abcdef"]), "gpt")
    with pytest.raises(RunError, match="reads no texts"):
        check_reader(nn.Linear(2, 2), tokenizer(WORDS), "linear")


def test_only_a_causal_model_learns_texts_without_labels() -> None:
    torch.manual_seed(0)
    batch = {"input_ids": torch.tensor([[2, 4]])}
    check_causal(GPT2LMHeadModel(GPT).eval(), batch, "gpt")
    with pytest.raises(RunError, match="sees the tokens"):
        check_causal(BertForMaskedLM(BertConfig(**BERT)), batch, "bert")
    with pytest.raises(RunError, match="predicts no tokens"):
        check_causal(BertForSequenceClassification(BertConfig(**BERT)), batch, "bert")
