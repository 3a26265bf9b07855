"""A causal language model as one step of generation: new tokens and a cache in, logits and a longer cache out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from exporters.axes import BATCH, SEQUENCE
from exporters.errors import ExportError
from exporters.inputs import Inputs, identifier
from exporters.windows import slides

Cache = bool | Literal["right"]
"""True: prompts may be padded on either side, with a sliding window on the left. ``right``: on the right
alone, with a sliding window not at all, so that the operator counts tokens and rotates by itself."""

Padding = Literal["either", "left", "right", "none"]

IDS, MASK = "input_ids", "attention_mask"
PAST, PRESENT = "past_key_values.{}.{}", "present.{}.{}"
PAST_SEQUENCE, TOTAL_SEQUENCE = f"past_{SEQUENCE}", f"total_{SEQUENCE}"
_PARTS = ("key", "value")
_TRACED = {BATCH: 2, SEQUENCE: 3, PAST_SEQUENCE: 4}


@dataclass(frozen=True)
class CacheShape:
    """What one layer remembers: (batch, heads, length, size) of its keys, and likewise of its values."""

    heads: int
    sizes: tuple[int, int]


class DecoderStep(nn.Module):
    """One step: ``(input_ids, attention_mask, **past) -> {"logits", "present.0.key", ...}``.

    ``input_ids`` is (batch, sequence); ``attention_mask`` (batch, past + sequence) is 1 where there is
    a token, of the past and of now; ``past_key_values.N.key`` and ``.value`` are (batch, heads, past,
    size), of length 0 for a prompt. A token's position is the number of tokens before it.

    Args:
        model: A transformers causal language model.
        layers: What each layer remembers.
        padding: Where the rows of a batch may be padded: ``either`` side, ``left``, ``right`` or not at
            all. Rows padded elsewhere get NaN for logits: they would be wrong, and nobody would notice.
    """

    def __init__(
        self, model: nn.Module, layers: tuple[CacheShape, ...], padding: Padding = "either"
    ) -> None:
        super().__init__()
        self.model, self.layers = model, layers
        self.padding: Padding = padding
        self._positions = "position_ids" in inspect.signature(model.forward).parameters
        # torch.export guards what it is given by parameter name, and knows none of open-ended ones.
        self.forward = _with_names(self._forward, map(identifier, self.past(1)))

    def _forward(self, input_ids: Tensor, attention_mask: Tensor, **past: Tensor) -> dict[str, Any]:
        positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        cache = _cache(past, len(self.layers))
        found = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=cache,
            use_cache=True,
            **({"position_ids": positions} if self._positions else {}),
        )
        wrong = self._misplaced(attention_mask, input_ids.shape[1])
        logits = found.logits
        if wrong is not None:
            logits = logits.masked_fill(wrong[:, None, None], torch.nan)
        present = {
            PRESENT.format(number, part): getattr(layer, f"{part}s")
            for number, layer in enumerate(cache.layers)
            for part in _PARTS
        }
        return {"logits": logits, **present}

    def _misplaced(self, mask: Tensor, length: int) -> Tensor | None:
        """Which rows are padded where they may not be, (batch,); ``length`` tokens are new."""
        if self.padding == "either":
            return None
        if self.padding == "none":
            return (mask == 0).any(1)
        if self.padding == "right":
            # The number of earlier tokens tells where the new ones go, one after another.
            return (mask[:, 0] == 0) | _grows(mask[:, -length:])
        return _grows(1 - mask)

    def prompt(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits of a prompt, (batch, sequence, vocabulary)."""
        past = {identifier(name): value for name, value in self.past(len(input_ids)).items()}
        logits: Tensor = self._forward(input_ids, attention_mask, **past)["logits"]
        return logits

    def inputs(self) -> Inputs:
        """Random inputs of a step in the middle, with every axis that is dynamic."""
        batch, sequence, past = _TRACED.values()
        generator = torch.Generator().manual_seed(0)
        tensors = {
            IDS: torch.randint(self.vocabulary, (batch, sequence), generator=generator),
            MASK: torch.ones(batch, past + sequence, dtype=torch.int64),
        }
        axes = {IDS: {0: BATCH, 1: SEQUENCE}, MASK: {0: BATCH, 1: TOTAL_SEQUENCE}}
        for name, value in self.past(batch, past).items():
            tensors[name] = torch.randn(value.shape, generator=generator)
            axes[name] = {0: BATCH, 2: PAST_SEQUENCE}
        return Inputs(tensors, {}, axes)

    def past(self, batch: int, length: int = 0) -> dict[str, Tensor]:
        """A cache of zeros by input name; of length 0 it is what a prompt starts with."""
        return {
            PAST.format(number, part): torch.zeros(batch, layer.heads, length, size)
            for number, layer in enumerate(self.layers)
            for part, size in zip(_PARTS, layer.sizes, strict=True)
        }

    @property
    def counted(self) -> bool:
        """Whether the number of its tokens is all that need be known of a row's padding."""
        return self.padding in {"right", "none"}

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        model: Any = self.model
        return int(model.get_input_embeddings().weight.shape[0])


def _grows(mask: Tensor) -> Tensor:
    """In which rows a 1 follows a 0, (batch,)."""
    before = torch.cat([mask[:, :1], mask[:, :-1]], 1)
    return (mask > before).any(1)


def positions_of(model: nn.Module) -> int | None:
    """How many positions a transformers model was made for, if its configuration says so."""
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "get_text_config"):
        return None
    found = getattr(config.get_text_config(), "max_position_embeddings", None)
    return found if isinstance(found, int) else None


def decoder_step(model: nn.Module, cache: Cache) -> DecoderStep:
    """Wrap a causal language model for export with its cache.

    Raises:
        ExportError: If it does not keep keys and values of every token.
    """
    accepted = inspect.signature(model.forward).parameters
    if not {"past_key_values", "use_cache", MASK} <= accepted.keys():
        raise _no_decoder(model, "its forward does not take past_key_values, use_cache and a mask")
    ids = torch.zeros(1, 2, dtype=torch.int64)
    with torch.no_grad():
        found = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True)
    layers = getattr(getattr(found, "past_key_values", None), "layers", None)
    if not layers or getattr(found, "logits", None) is None:
        raise _no_decoder(model, "it returns no logits, or no cache")
    shapes = tuple(_shape(model, layer) for layer in layers)
    step = DecoderStep(model, shapes)
    # A sliding window counts places, so that padding between a row's tokens would shorten it.
    sliding = any(getattr(layer, "is_sliding", False) for layer in layers) or slides(
        model, step.prompt, step.vocabulary, positions_of(model)
    )
    if cache == "right":
        step.padding = "none" if sliding else "right"
    elif sliding:
        step.padding = "left"
    return step


def check_alone(adapters: bool, example_inputs: bool, dynamic: bool) -> None:
    """Refuse what does not go together with a cache.

    Raises:
        ExportError: Naming the argument.
    """
    asked = {"adapters='runtime'": adapters, "example_inputs": example_inputs, "dynamic": dynamic}
    for name, given in asked.items():
        if given:
            raise ExportError(
                f"cache and {name} do not go together",
                why="the inputs of a step of generation and their dynamic axes are given, and its "
                "adapters are folded",
                remedy=f"leave {name} out; prompts to be verified go to samples=",
            )


def _shape(model: nn.Module, layer: Any) -> CacheShape:
    keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
    if not (isinstance(keys, Tensor) and isinstance(values, Tensor)) or not (
        keys.ndim == 4 and keys.shape[:3] == values.shape[:3] and keys.shape[2] == 2
    ):
        raise _no_decoder(model, f"a {type(layer).__name__} is no plain list of keys and values")
    return CacheShape(keys.shape[1], (keys.shape[-1], values.shape[-1]))


def _with_names(
    function: Callable[..., dict[str, Any]], names: Iterable[str]
) -> Callable[..., dict[str, Any]]:
    """The function, with its open-ended keyword arguments named in its signature."""
    signature = inspect.signature(function)
    fixed = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    named = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]

    def forward(*args: Tensor, **kwargs: Tensor) -> dict[str, Any]:
        return function(*args, **kwargs)

    forward.__signature__ = signature.replace(parameters=[*fixed, *named])  # type: ignore[attr-defined]
    return forward


def _cache(past: dict[str, Tensor], layers: int) -> Any:
    """The tensors as the model's own cache. It keeps every token: windows are the masks' affair."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    cache = DynamicCache()
    for number in range(layers):
        layer = DynamicLayer()
        layer.keys, layer.values = (past[identifier(PAST.format(number, part))] for part in _PARTS)
        layer.dtype, layer.device = layer.keys.dtype, layer.keys.device
        layer.is_initialized = True
        cache.layers.append(layer)
    return cache


def _no_decoder(model: nn.Module, why: str) -> ExportError:
    return ExportError(
        f"{type(model).__name__} cannot be exported with a cache",
        why=why,
        remedy="leave cache=False, or pass a transformers causal language model that attends to "
        "all its tokens",
    )
