"""What verification could not see, or saw otherwise than a user would."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from exporters.capture import Captured
from exporters.draws import is_one_number
from exporters.eager import Array, Case, difference, flattened
from exporters.inputs import Inputs
from exporters.padding import MASK

_VISIBLE = 1e-3


def told(model: nn.Module, captured: Captured, cases: Sequence[Case]) -> Iterator[str]:
    """Notes for the reader of a report.

    Args:
        model: What was run.
        captured: Its graph, with the example's values.
        cases: On what it was run, and what came out.
    """
    given, seen = captured.inputs, [inputs for inputs, _ in cases]
    yield from _of_values(given, seen)
    for axis in given.sizes:
        sizes = {inputs.sizes[axis] for inputs in seen}
        if len(sizes) == 1:
            yield f"{axis} was verified at {sizes.pop()} alone"
    if _writes_zeros(model, *cases[-1]):
        yield "torch's fast path of TransformerEncoder gives 0 for padding: the file gives other values there"


def _of_values(given: Inputs, seen: Sequence[Inputs]) -> Iterator[str]:
    for number, (name, value) in enumerate(given.tensors.items()):
        first = value.flatten()[0].item() if value.numel() else None
        if first is None or MASK in name:
            continue
        if is_one_number(value):
            drawn = any(bool((inputs.tensors[name] != first).any()) for inputs in seen)
            on = "random numbers from there on" if drawn else "this number alone"
            yield f"{name} is {first:g} everywhere in the example: verified on {on}"
        elif number == 0 and value.numel() > 1 and bool((value == first).all()):
            yield f"{name} is {first} everywhere in the example: verified on this value alone"


def _writes_zeros(model: nn.Module, inputs: Inputs, expected: Sequence[Array]) -> bool:
    """Whether an encoder's fast path is taken, and shows."""
    kinds = [module for module in model.modules() if isinstance(module, nn.TransformerEncoder)]
    if not any(module.use_nested_tensor for module in kinds):
        return False
    with torch.no_grad():
        found = flattened(model(**inputs.kwargs))
    return any(difference(*pair) > _VISIBLE for pair in zip(expected, found, strict=True))
