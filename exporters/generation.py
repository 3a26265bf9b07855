"""Does a file with a cache generate what the model generates? Greedy, token by token, prompts of many lengths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from exporters.axes import BATCH, SEQUENCE
from exporters.causal import IDS, MASK, PAST_SEQUENCE, TOTAL_SEQUENCE, DecoderStep
from exporters.eager import Array
from exporters.errors import ExportError
from exporters.inputs import Inputs, everything
from exporters.parity import Call, Found, ParityRow, relative_error
from surgery.errors import told_by

_LENGTHS = (7, 4, 1)
_STEPS = 6


@dataclass(frozen=True)
class Continuation:
    """A prompt, and what the model makes of it alone, without a cache.

    Attributes:
        tokens: The prompt and the tokens generated greedily, (length + steps,).
        logits: At each of them but the last, (length + steps - 1, vocabulary).
        length: Of the prompt.
    """

    tokens: Array
    logits: Array
    length: int


class Rolling:
    """A cache between two calls: outputs of one become inputs of the next."""

    def __init__(self, call: Call, past: Mapping[str, Array]) -> None:
        self.call, self.past = call, dict(past)

    def __call__(self, ids: Array, mask: Array) -> Array:
        """Logits of the new tokens, (batch, sequence, vocabulary)."""
        logits, *present = self.call({IDS: ids, MASK: mask, **self.past})
        self.past = dict(zip(self.past, present, strict=True))
        return np.asarray(logits)


@dataclass(frozen=True)
class Generated:
    """The reference of a file with a cache."""

    step: DecoderStep
    continuations: tuple[Continuation, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, step: DecoderStep, prompts: Any = None) -> Generated:
        """Let the model continue random prompts, and the user's, each alone and without a cache.

        Raises:
            ExportError: If the model does not take the prompts.
        """
        generator = torch.Generator().manual_seed(0)
        drawn = [torch.randint(step.vocabulary, (n,), generator=generator) for n in _LENGTHS]
        given = [] if prompts is None else _prompts(prompts)
        return cls(step, tuple(_continue(step, prompt) for prompt in (*drawn, *given)))

    def measure(self, call: Call, tolerance: float) -> Found:
        """Feed every prompt and the model's own continuation, step by step, and compare."""
        batches = self._batches()
        found = [pair for batch in batches for pair in batch.run(call, self.step, tolerance)]
        agrees = np.concatenate([choices for _, choices in found])
        return Found([row for row, _ in found], float(agrees.mean()))

    def one_call(self) -> tuple[nn.Module, Inputs]:
        """See :class:`Reference`: one token of one row behind a few others."""
        inputs = self.step.inputs()
        sizes = {BATCH: 1, SEQUENCE: 1, TOTAL_SEQUENCE: 1 + inputs.sizes[PAST_SEQUENCE]}
        return self.step, inputs.resized(sizes, keep=everything)

    def _batches(self) -> Iterator[_Batch]:
        """Each prompt alone, one of them in two pieces; all at once, padded where they may be; two token by token."""
        for continuation in self.continuations:
            yield _Batch((continuation, continuation))
        yield _Batch(self.continuations[:1], pieces=2)
        if self.step.padding in {"either", "right"}:
            yield _Batch(self.continuations[:2], pieces=max(_LENGTHS))
        for chosen in (self.continuations[:2], self.continuations):
            if self.step.padding in {"either", "right"}:
                yield _Batch(chosen)
            if self.step.padding in {"either", "left"}:
                yield _Batch(chosen, left=True)


@dataclass(frozen=True)
class _Batch:
    """Some continuations side by side."""

    rows: tuple[Continuation, ...]
    left: bool = False
    pieces: int = 1

    def run(
        self, call: Call, step: DecoderStep, tolerance: float
    ) -> Iterator[tuple[ParityRow, Array]]:
        """Feed the prompts, then the model's own tokens one by one: errors, and which choices agree."""
        past = {name: value.numpy() for name, value in step.past(len(self.rows)).items()}
        rolling = Rolling(call, past)
        ids, mask = self._prompts()
        fed = 0
        for piece in np.array_split(np.arange(ids.shape[1]), self.pieces):
            logits = rolling(ids[:, piece], mask[:, : fed + len(piece)])
            yield self._compare(logits, mask[:, piece], fed, tolerance)
            fed += len(piece)
        one = np.ones((len(self.rows), 1), np.int64)
        for number in range(_STEPS - 1):
            ids = np.stack([row.tokens[[row.length + number]] for row in self.rows])
            mask = np.concatenate([mask, one], 1)
            logits = rolling(ids, mask)
            yield self._compare(logits, one, fed + number, tolerance, number)

    def _prompts(self) -> tuple[Array, Array]:
        """Prompts padded to one length, and the mask that says so."""
        longest = max(row.length for row in self.rows)
        ids = np.zeros((len(self.rows), longest), np.int64)
        mask = np.zeros_like(ids)
        for number, row in enumerate(self.rows):
            place = slice(longest - row.length, None) if self.left else slice(row.length)
            ids[number, place], mask[number, place] = row.tokens[: row.length], 1
        return ids, mask

    def _compare(
        self, logits: Array, mask: Array, fed: int, tolerance: float, number: int | None = None
    ) -> tuple[ParityRow, Array]:
        """Real tokens only: what stands at a padded place means nothing."""
        expected = []
        for kept, row in zip(mask, self.rows, strict=True):
            # Rows padded on the left are fed at once, others perhaps in pieces.
            start = fed if number is None else row.length + number
            chosen = slice(start, start + int(kept.sum()))
            expected.append(row.logits[chosen])
        wanted, found = np.concatenate(expected), logits[mask == 1]
        sizes = {"batch": len(self.rows), "sequence": logits.shape[1], "past_sequence": fed}
        error = relative_error(wanted, found)
        return ParityRow("logits", sizes, error, tolerance), _agree(wanted, found, tolerance)


def _agree(wanted: Array, found: Array, tolerance: float) -> Array:
    """Whether the file chooses as the model does; a tie within the tolerance may fall either way."""
    chosen = np.take_along_axis(wanted, found.argmax(-1)[:, None], -1)[:, 0]
    agrees: Array = wanted.max(-1) - chosen <= tolerance * np.abs(wanted).max()
    return agrees


@torch.no_grad()
def _continue(step: DecoderStep, prompt: Tensor) -> Continuation:
    tokens = prompt[None]
    try:
        for _ in range(_STEPS):
            logits = step.model(input_ids=tokens, use_cache=False).logits
            tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], 1)
    except Exception as error:  # whatever the model raises for a prompt it cannot take
        raise ExportError(
            f"{type(step.model).__name__} does not take a prompt of {len(prompt)} tokens",
            why=told_by(error),
            remedy="pass samples= of token ids in the vocabulary, shorter than the model's limit",
        ) from error
    return Continuation(tokens[0].numpy(), logits[0].numpy(), len(prompt))


def _prompts(given: Any) -> Iterator[Tensor]:
    """The user's prompts without their padding."""
    ids, mask = (given[IDS], given.get(MASK)) if isinstance(given, Mapping) else (given, None)
    rows = torch.as_tensor(ids)
    if rows.ndim != 2 or rows.is_floating_point():
        raise ExportError(
            "the samples are no prompts",
            where=f"{tuple(rows.shape)} {rows.dtype}",
            why="a model with a cache is verified by continuing token ids, (batch, length)",
            remedy="pass samples= a tensor of ids, or a mapping with input_ids and attention_mask",
        )
    kept = torch.ones_like(rows) if mask is None else torch.as_tensor(mask)
    yield from (row[keep == 1] for row, keep in zip(rows, kept, strict=True))
