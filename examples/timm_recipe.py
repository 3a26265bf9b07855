"""timm's recipe around an adapted model: its data config, transforms, mixup, optimizer, schedule and EMA.

``python -m examples.timm_recipe``. The EMA is a copy of the adapted model, so it folds like the model itself. SRLoRA's
recomposer is told of it: the pairs that it swaps in the model are swapped in the average, too.
"""

from __future__ import annotations

import timm
import torch
from PIL import Image
from timm.data import Mixup, create_transform, resolve_model_data_config
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn

import surgery

CLASSES, BATCH, BATCHES = 3, 16, 4


def main(epochs: int = 3) -> tuple[nn.Module, nn.Module]:
    """Train; the model and its EMA, both folded."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=CLASSES)
    config = resolve_model_data_config(model) | {"input_size": (3, 32, 32)}
    transform = create_transform(**config, is_training=True)
    surgery.apply(model, "vit-srlora-qv", rank=4, seed=0)
    average = ModelEmaV3(model, decay=0.9)  # after surgery.apply
    groups = surgery.parameter_groups(model, lr=1e-3, weight_decay=0.05)
    optimizer = create_optimizer_v2(groups, opt="adamw", lr=1e-3, weight_decay=0.0)
    scheduler, epochs = create_scheduler_v2(optimizer, "cosine", num_epochs=epochs, warmup_epochs=1)
    total = epochs * BATCHES
    recomposer = surgery.Recomposer(model, optimizer, total_steps=total, averages=[average])
    mixup, criterion = Mixup(mixup_alpha=0.2, num_classes=CLASSES), SoftTargetCrossEntropy()
    for epoch in range(epochs):
        for images, labels in batches(transform):
            mixed, targets = mixup(images, labels)
            loss = criterion(model(mixed), targets)
            optimizer.zero_grad()
            loss.backward()
            recomposer.step()
            optimizer.step()
            average.update(model)
        scheduler.step(epoch + 1)
    for each in (model, average.module):
        print(surgery.fold(each.eval()))
    return model, average.module


def batches(transform: nn.Module, count: int = BATCHES) -> list[tuple[Tensor, Tensor]]:
    """Plain colours as PIL images, through the transform."""
    colours = ("red", "green", "blue")
    made = []
    for _ in range(count):
        labels = torch.arange(BATCH) % CLASSES
        images = [transform(Image.new("RGB", (40, 40), colours[n])) for n in labels.tolist()]
        made.append((torch.stack(images), labels))
    return made


if __name__ == "__main__":
    main()
