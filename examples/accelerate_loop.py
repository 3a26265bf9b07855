"""The same loop under accelerate: bf16, accumulation, clipping, many processes.

``python -m examples.accelerate_loop``, or ``accelerate launch --num_processes 2 -m examples.accelerate_loop``.
"""

from __future__ import annotations

import timm
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import surgery


def main(epochs: int = 4, precision: str = "bf16") -> float:
    """Train on noise with a colour, fold; the loss of the last step."""
    accelerator = Accelerator(mixed_precision=precision, gradient_accumulation_steps=2)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3)
    surgery.apply(model, "vit-attn-qv", adapter="srlora", rank=4, seed=0)
    optimizer = torch.optim.AdamW(surgery.parameter_groups(model, lr=1e-3))
    model, optimizer, loader = accelerator.prepare(model, optimizer, data())
    steps = epochs * len(loader) // accelerator.gradient_accumulation_steps
    recomposer = surgery.Recomposer(model, optimizer.optimizer, total_steps=steps)
    for _ in range(epochs):
        for images, labels in loader:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(images), labels)
                accelerator.backward(loss)
                if accelerator.sync_gradients:  # once an optimizer step
                    recomposer.step()
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
    plain = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    print(surgery.fold(plain.eval()))
    return float(loss.item())


def data() -> DataLoader[tuple[torch.Tensor, ...]]:
    """Noise, one channel of each image brighter: that channel is its class."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (128,), generator=generator)
    images = torch.randn(128, 3, 32, 32, generator=generator)
    images[torch.arange(128), labels] += 1
    return DataLoader(TensorDataset(images, labels), batch_size=8, shuffle=True)


if __name__ == "__main__":
    main()
