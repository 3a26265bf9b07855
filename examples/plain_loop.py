"""SRLoRA in a loop of your own: one line more, between backward and step. ``python -m examples.plain_loop``."""

from __future__ import annotations

import timm
import torch
from torch import nn

import surgery


def main(steps: int = 40) -> float:
    """Train on noise with a colour, fold; the loss of the last step."""
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3)
    surgery.apply(model, "vit-attn-qv", adapter="srlora", rank=4, seed=0)
    groups = surgery.parameter_groups(model, lr=1e-3, weight_decay=0.05)
    optimizer = torch.optim.AdamW(groups)
    recomposer = surgery.Recomposer(model, optimizer, total_steps=steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        labels = torch.randint(3, (16,), generator=generator)
        images = torch.randn(16, 3, 32, 32, generator=generator)
        images[torch.arange(16), labels] += 1
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        recomposer.step()  # the one line
        optimizer.step()
    print(surgery.fold(model.eval()))
    return loss.item()


if __name__ == "__main__":
    main()
