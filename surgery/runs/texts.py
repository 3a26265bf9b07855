"""Texts as a model takes them, and whether it can learn them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from surgery.anatomy.capture import unchanged
from surgery.errors import RunError, told_by
from surgery.runs.schema import RunSpec

Batch = dict[str, Tensor]
IGNORED = -100
"""Label of a token that no loss is taken of, as transformers has it."""


@dataclass(frozen=True)
class Tokens:
    """Texts as token batches, padded to their longest.

    Attributes:
        tokenizer: A transformers tokenizer.
        max_length: Tokens of a text, at most.
    """

    tokenizer: Any
    max_length: int

    def __call__(self, samples: list[tuple[str, int | None]]) -> Batch:
        """Tokenize a list of samples together."""
        texts, targets = zip(*samples, strict=True)
        batch: Batch = dict(
            self.tokenizer(
                list(texts),
                truncation=True,
                max_length=self.max_length,
                padding=True,
                return_tensors="pt",
            )
        )
        if targets[0] is None:
            labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
            return batch | {"labels": labels}
        return batch | {"labels": torch.tensor(targets)}


def tokenizer_of(spec: RunSpec) -> Any:
    """The tokenizer of a run's texts.

    Raises:
        RunError: If none is named or it cannot be loaded.
    """
    from transformers import AutoTokenizer

    kind, _, name = spec.model.name.partition(":")
    place = spec.data.tokenizer or (name if kind == "hf" else None)
    if place is None:
        raise RunError(
            "texts need a tokenizer",
            where=spec.model.name,
            why="only hf models bring their own",
            remedy="name a tokenizer folder in data.tokenizer",
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(place)
    except Exception as error:  # whatever a library raises on a folder without one
        raise RunError(
            "the tokenizer cannot be loaded",
            where=str(place),
            why=told_by(error),
            remedy="name a folder with tokenizer.json in data.tokenizer",
        ) from error
    # transformers makes up an empty one for a model without.
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise RunError(
            "the tokenizer knows no words",
            where=str(place),
            why="the folder holds a model and no tokenizer",
            remedy="save the tokenizer there, too, or name its folder in data.tokenizer",
        )
    return tokenizer


def check_reader(model: nn.Module, tokenizer: Any, name: str) -> None:
    """Refuse a model that takes no texts, or knows fewer words than the tokenizer.

    Raises:
        RunError: It says which.
    """
    if "input_ids" not in inspect.signature(model.forward).parameters:
        raise RunError(
            "the model reads no texts",
            where=name,
            why=f"{type(model).__name__} has no input_ids",
            remedy="take a language model, or data.images",
        )
    words = _words(model)
    if len(tokenizer) > words:
        raise RunError(
            "the tokenizer is another model's",
            where=name,
            why=f"it has {len(tokenizer):,} words, and the model {words:,}",
            remedy="name the model's own tokenizer in data.tokenizer",
        )


@torch.no_grad()
def check_causal(model: nn.Module, batch: Batch, name: str) -> None:
    """Refuse to learn texts without labels with a model that sees what it is to predict.

    It is run twice, on texts whose last token differs: what it says of the tokens before may not.

    Args:
        model: A language model.
        batch: One text.
        name: Of the model, for errors.

    Raises:
        RunError: If an earlier token's prediction changes, or there is none for each token.
    """
    ids = batch["input_ids"].repeat(1, 3)[:, :3].to(next(model.parameters()).device)
    other = ids.clone()
    other[0, -1] = (ids[0, -1] + 1) % _words(model)
    with unchanged(model):
        one, two = (_logits(model, tokens) for tokens in (ids, other))
    fits = isinstance(one, Tensor) and one.shape[:2] == ids.shape
    if not (fits and torch.equal(one[0, :2], two[0, :2])):
        raise RunError(
            "texts without labels are learned by a causal language model",
            where=name,
            why=f"{type(model).__name__} sees the tokens that it is to predict"
            if fits
            else f"{type(model).__name__} predicts no tokens",
            remedy="take a causal model, or name the column of the labels in data.label",
        )


def _logits(model: nn.Module, ids: Tensor) -> Any:
    return getattr(model(input_ids=ids), "logits", None)


def _words(model: Any) -> int:
    return int(model.get_input_embeddings().num_embeddings)
