"""Samples as a model takes them: transforms, tokens, batches."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from surgery.runs.loss import check_classes
from surgery.runs.samples import Data, Samples
from surgery.runs.schema import RunSpec
from surgery.runs.texts import Batch, Tokens, check_causal, check_reader, tokenizer_of


class Feed(Dataset[tuple[Any, int | None]]):
    """Transformed samples. What is random in them hangs on seed, epoch and index alone.

    So a resumed run sees the images that an unstopped one would have seen, with any number of
    workers.

    Args:
        samples: Items and labels.
        transform: Applied to each item.
        seed: Of the transform.
    """

    def __init__(self, samples: Samples, transform: Callable[[Any], Any], seed: int) -> None:
        self.samples, self.transform, self.seed, self.epoch = samples, transform, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's loaders."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int | None]:
        item, target = self.samples[index]
        with seeded(self.seed, self.epoch, index):
            return self.transform(item), target


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Python, NumPy and torch (on the CPU) draw from these numbers inside, and go on as before after it."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    words = np.random.SeedSequence(numbers).generate_state(1)
    seed = int(words[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


@dataclass(frozen=True)
class Feeding:
    """How a model is fed.

    Attributes:
        train: What it is trained on.
        validation: What it is evaluated on.
        collate: Makes a batch of samples: the model's named inputs, and ``labels``.
        tokenizer: Of texts; saved beside a folded model.
        shifted: Whether each token's label is the next one.
    """

    train: Feed
    validation: Feed
    collate: Callable[[list[tuple[Any, Any]]], Batch]
    tokenizer: Any = None
    shifted: bool = False

    def sample(self, count: int) -> Batch:
        """The inputs of the first ``count`` validation samples, without labels."""
        chosen = [self.validation[i] for i in range(min(count, len(self.validation)))]
        batch = self.collate(chosen)
        batch.pop("labels", None)
        return batch


def feed(data: Data, model: nn.Module, spec: RunSpec) -> Feeding:
    """Make what a model takes of what was opened.

    Raises:
        RunError: If the model's image size is not known, texts have no tokenizer, the model cannot learn them,
            or it has other classes.
        CaptureError: If the model does not tell its inputs.
    """
    made = _images(data, model, spec) if data.kind == "images" else _texts(data, model, spec)
    if data.labels:
        check_classes(model, made.collate([made.train[0]]), data.labels, spec.model.name)
    return made


def _images(data: Data, model: nn.Module, spec: RunSpec) -> Feeding:
    from surgery.runs import pictures

    look = pictures.look_of(model, spec)
    train = Feed(data.train, look.transform(training=spec.data.augment), spec.seed)
    validation = Feed(data.validation, look.transform(training=False), spec.seed)
    return Feeding(train, validation, Stack(look.name))


@dataclass(frozen=True)
class Stack:
    """Images of one size as one tensor, (n, c, h, w).

    Attributes:
        name: Of the model's input.
    """

    name: str

    def __call__(self, samples: list[tuple[Tensor, int]]) -> Batch:
        """Put a list of samples together."""
        images, targets = zip(*samples, strict=True)
        return {self.name: torch.stack(images), "labels": torch.tensor(targets)}


def _texts(data: Data, model: nn.Module, spec: RunSpec) -> Feeding:
    tokenizer = tokenizer_of(spec)
    config = getattr(model, "config", None)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if config is not None and getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = tokenizer.pad_token_id
    collate = Tokens(tokenizer, spec.data.max_length)
    check_reader(model, tokenizer, spec.model.name)
    if not data.labels:
        check_causal(model, collate([data.train[0]]), spec.model.name)
    train, validation = (Feed(samples, str, spec.seed) for samples in (data.train, data.validation))
    return Feeding(train, validation, collate, tokenizer, shifted=not data.labels)
