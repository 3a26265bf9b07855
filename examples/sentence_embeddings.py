"""Adapters in a sentence-transformers model, with its own trainer. ``python -m examples.sentence_embeddings``."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from sentence_transformers.sentence_transformer.training_args import (
    SentenceTransformerTrainingArguments,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

import surgery
from surgery.integrations.trainer import RecomposerCallback

PAIRS = {"a cat": "a kitten", "a dog": "a puppy", "a cow": "a calf", "a hen": "a chick"}


def main(steps: int = 48) -> SentenceTransformer:
    """Bring pairs of words together, fold; the folded model."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        model = tiny(Path(folder))  # SentenceTransformer("all-MiniLM-L6-v2") for real work
        surgery.apply(model[0].auto_model, "text-attn-qv", adapter="srlora", rank=4, train=[])
        arguments = SentenceTransformerTrainingArguments(
            folder,
            max_steps=steps,
            learning_rate=3e-2,
            per_device_train_batch_size=4,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        SentenceTransformerTrainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_dict(
                {"anchor": list(PAIRS), "positive": list(PAIRS.values())}
            ),
            loss=MultipleNegativesRankingLoss(model),
            callbacks=[RecomposerCallback()],
        ).train()
    print(surgery.fold(model[0].auto_model.eval()))
    return model


def tiny(folder: Path) -> SentenceTransformer:
    """A BERT of two layers that knows the words of ``PAIRS``."""
    known = " ".join([*PAIRS, *PAIRS.values()]).split()
    words = ["[PAD]", "[UNK]", *dict.fromkeys(known)]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    BertModel(config).save_pretrained(folder)
    transformer = Transformer(str(folder))
    return SentenceTransformer(modules=[transformer, Pooling(32)], device="cpu")


if __name__ == "__main__":
    main()
