"""SRLoRA in a transformers Trainer: switches happen, the schedule is the Trainer's, resuming is exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
    set_seed,
)

import surgery
from surgery.adapters.srlora import SRLoRA
from surgery.integrations.trainer import RecomposerCallback

STEPS, HALF = 8, 4


class Words(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = torch.randint(5, 60, (7,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": ids.sum() % 2}


def model(adapter: str = "srlora", **options: Any) -> BertForSequenceClassification:
    set_seed(0)
    config = BertConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    )
    made = BertForSequenceClassification(config)
    return surgery.apply(made, "text-attn-qv", adapter=adapter, rank=2, seed=0, **options)


def trainer(net: BertForSequenceClassification, folder: Path) -> tuple[Trainer, RecomposerCallback]:
    callback = RecomposerCallback()
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        save_steps=HALF,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
    )
    return Trainer(net, arguments, train_dataset=Words(), callbacks=[callback]), callback


def adapters(net: torch.nn.Module) -> list[SRLoRA]:
    return [module for module in net.modules() if isinstance(module, SRLoRA)]


def test_resuming_from_a_checkpoint_is_the_same_run(tmp_path: Path) -> None:
    whole = model(target_rank=6)
    loop, callback = trainer(whole, tmp_path)
    loop.train()
    assert [done.step for done in callback.history] == [2, 4, 6]
    assert all(int(adapter.cursor) == 3 for adapter in adapters(whole))

    again = model(target_rank=6)
    loop, callback = trainer(again, tmp_path)
    loop.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{HALF}"))
    assert [done.step for done in callback.history] == [6]
    for (name, one), (_, other) in zip(
        whole.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert torch.equal(one, other), name
    for (name, one), (_, other) in zip(
        whole.named_parameters(), again.named_parameters(), strict=True
    ):
        assert torch.equal(one, other), name


def test_a_shorter_resumption_keeps_the_schedule_it_began_with(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its cursor and its scores are those of the longer one."""
    loop, _ = trainer(model(target_rank=6), tmp_path)
    loop.train()
    loop, callback = trainer(model(target_rank=6), tmp_path)
    loop.args.max_steps = STEPS - 1
    loop.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{HALF}"))
    assert [done.step for done in callback.history] == [6]
    assert callback.recomposer is not None and callback.recomposer.total_steps == STEPS
    assert f"goes on to step {STEPS}, as it began, and not to {STEPS - 1}" in caplog.text


def test_a_model_that_does_not_recompose_is_refused(tmp_path: Path) -> None:
    loop, _ = trainer(model("lora"), tmp_path)
    with pytest.raises(surgery.StateError, match="no adapter that recomposes"):
        loop.train()
