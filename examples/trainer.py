"""SRLoRA in transformers' ``Trainer``: one callback. ``python -m examples.trainer``."""

from __future__ import annotations

import tempfile

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import surgery
from surgery.integrations.trainer import RecomposerCallback


def main(steps: int = 40) -> float:
    """Learn which of two words is in a sentence, fold; the loss at the end."""
    config = BertConfig(vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    torch.manual_seed(0)
    model = BertForSequenceClassification(config)
    surgery.apply(model, "text-attn-qv", adapter="srlora", rank=4, train=["head", "embeddings"])
    recompose = RecomposerCallback()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=steps,
            learning_rate=1e-2,
            max_grad_norm=1.0,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = Trainer(model, arguments, train_dataset=sentences(), callbacks=[recompose])
        loss: float = trainer.train().training_loss
    print(recompose.history[0])
    print(surgery.fold(model.eval()))
    return loss


def sentences(count: int = 64) -> list[dict[str, torch.Tensor]]:
    """Eight words each; the first of them, 5 or 6, is the class."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for number in range(count):
        ids = torch.randint(7, 60, (8,), generator=generator)
        ids[0] = 5 + number % 2
        made.append({"input_ids": ids, "labels": torch.tensor(number % 2)})
    return made


if __name__ == "__main__":
    main()
