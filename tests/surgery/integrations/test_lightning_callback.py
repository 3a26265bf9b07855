"""SRLoRA in a Lightning Trainer: switches happen, the schedule is the Trainer's, resuming is exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import surgery

L = pytest.importorskip("lightning.pytorch")

from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402

from surgery.integrations.lightning import RecomposerCallback  # noqa: E402

STEPS, HALF = 8, 4
pytestmark = pytest.mark.filterwarnings("ignore")


class Classifier(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        net = timm.create_model(
            "vit_tiny_patch16_224",
            img_size=32,
            embed_dim=16,
            depth=2,
            num_heads=2,
            num_classes=3,
        )
        options: dict[str, Any] = {"adapter": "srlora", "rank": 2, "target_rank": 6, "seed": 0}
        self.net = surgery.apply(net, "vit-attn-qv", **options)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(surgery.parameter_groups(self.net, lr=1e-2))


def fit(
    folder: Path, resume: Path | None = None, **options: Any
) -> tuple[Classifier, RecomposerCallback]:
    net, callback = Classifier(), RecomposerCallback()
    trainer = L.Trainer(
        callbacks=[
            callback,
            ModelCheckpoint(folder, "{step}", every_n_train_steps=HALF, save_top_k=-1),
        ],
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    torch.manual_seed(1)
    # Lightning resumes at the start of an epoch: checkpoints fall on its end.
    data = TensorDataset(torch.randn(16, 3, 32, 32), torch.arange(16) % 3)
    trainer.fit(net, DataLoader(data, batch_size=4), ckpt_path=resume)
    return net, callback


def test_resuming_from_a_checkpoint_is_the_same_run(tmp_path: Path) -> None:
    whole, callback = fit(tmp_path, max_steps=STEPS)
    assert [done.step for done in callback.history] == [2, 4, 6]
    again, callback = fit(tmp_path, tmp_path / f"step={HALF}.ckpt", max_steps=STEPS)
    assert [done.step for done in callback.history] == [6]
    for (name, one), (_, other) in zip(
        whole.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert torch.equal(one, other), name


def test_a_training_without_an_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(surgery.StateError, match="max_steps or max_epochs"):
        fit(tmp_path, max_epochs=-1)
