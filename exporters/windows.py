"""Whether a decoder attends to tokens by their place: padding between a row's tokens then hides some of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

Call = Callable[[Tensor, Tensor], Tensor]
"""Token ids and their mask, (batch, length), to logits, (batch, length, vocabulary)."""

_WORDS = ("window", "local", "chunk")
_TOKENS, _LONGEST = 8, 4096
_CLOSE = 1e-4


def slides(model: nn.Module, call: Call, vocabulary: int, positions: int | None) -> bool:
    """Whether a token behind a gap of padding gets other logits than without the gap.

    The gap is as long as the longest number that the configuration may mean for a window. Without such a number
    nothing is run; where the gap is too long to be tried, the answer is yes.

    Args:
        model: A transformers causal language model.
        call: One step of it, without a past.
        vocabulary: Number of token ids.
        positions: How many the model was made for, if known.
    """
    room = math.inf if positions is None else positions
    windows = [number for number in _numbers(model) if 0 < number < room]
    if not windows:
        return False
    gap = int(min(max(windows), room - _TOKENS - 1))
    if not 0 < gap <= _LONGEST:
        return True
    ids = torch.randint(vocabulary, (1, _TOKENS + 1), generator=torch.Generator().manual_seed(0))
    mask, hole = torch.ones_like(ids), torch.zeros(1, gap, dtype=ids.dtype)
    with torch.no_grad():
        alone = call(ids, mask)[:, -1]
        apart = call(*(torch.cat([row[:, :-1], hole, row[:, -1:]], 1) for row in (ids, mask)))
    return not torch.allclose(apart[:, -1], alone, rtol=0, atol=_CLOSE * float(alone.abs().max()))


def _numbers(model: nn.Module) -> Iterator[int]:
    """The whole numbers of the text model's configuration that may be lengths of windows."""
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "get_text_config"):
        return
    for name, value in vars(config.get_text_config()).items():
        if any(word in name for word in _WORDS):
            yield from (number for number in pytree.tree_leaves(value) if type(number) is int)
