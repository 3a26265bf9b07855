"""SRLoRA in Lightning: one callback. ``python -m examples.lightning_module``."""

from __future__ import annotations

import lightning.pytorch as L
import timm
import torch
from torch import Tensor, nn

import surgery
from examples.accelerate_loop import data
from surgery.integrations.lightning import RecomposerCallback


class Classifier(L.LightningModule):
    """A ViT with adapters; what is not trained is frozen already."""

    def __init__(self) -> None:
        super().__init__()
        self.net = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3)
        surgery.apply(self.net, "vit-attn-qv", adapter="srlora", rank=4, seed=0)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(surgery.parameter_groups(self.net, lr=1e-3))


def main(epochs: int = 2) -> float:
    """Train, fold; the loss of the last step."""
    module, recompose = Classifier(), RecomposerCallback()
    trainer = L.Trainer(
        max_epochs=epochs,
        callbacks=[recompose],
        gradient_clip_val=1.0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, data())
    print(recompose.history[0])
    print(surgery.fold(module.net.eval()))
    return float(trainer.callback_metrics["loss"])


if __name__ == "__main__":
    main()
