"""The inputs of one call by name, and more of the same kind at other sizes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from exporters.axes import BATCH, Axes, check_axes, usual_axes
from exporters.draws import draw, repeat
from exporters.errors import ExportError
from exporters.padding import MASK, is_mask, ragged
from surgery.anatomy.inputs import ExampleInputs, example_inputs

_SPELLED = 16
_SEGMENTS = "token_type_ids"

Choice = Callable[[str, Tensor], bool]
"""Of inputs, by name and value."""


@dataclass(frozen=True)
class Inputs:
    """Named inputs of one call.

    Attributes:
        tensors: What becomes an input of the ONNX graph, by parameter name of ``forward``.
        constants: What is baked into the graph (flags, None).
        axes: The dynamic dimensions of the tensors.
        notes: Axes that could have been dynamic, and why they are not.
        proposed: Whether the names of the axes are ours, and not the user's.
    """

    tensors: dict[str, Tensor]
    constants: dict[str, Any]
    axes: Axes
    notes: tuple[str, ...] = ()
    proposed: bool = False

    @property
    def kwargs(self) -> dict[str, Any]:
        """Everything, to be passed by name."""
        named = {**self.tensors, **self.constants}
        return {identifier(name): value for name, value in named.items()}

    @property
    def feeds(self) -> dict[str, np.ndarray[Any, Any]]:
        """The tensors as ONNX Runtime takes them."""
        return {name: value.detach().cpu().numpy() for name, value in self.tensors.items()}

    @property
    def sizes(self) -> dict[str, int]:
        """Size of each dynamic axis."""
        return {
            axis: self.tensors[name].shape[dim]
            for name, dims in self.axes.items()
            for dim, axis in dims.items()
        }

    def resized(
        self, sizes: Mapping[str, int], seed: int = 0, keep: Choice = lambda name, value: False
    ) -> Inputs:
        """Fresh inputs of the same kind at other sizes.

        Every value is drawn from the values of the same input here, so that ids stay in the
        vocabulary and pixels in their range; where it is one number everywhere, from there on upwards.
        Padding masks become ragged, in the sense that they have here; any other mask keeps its
        values, for one that is drawn may hide all there is.

        Args:
            sizes: New size of each axis that changes.
            seed: Of the draw.
            keep: Which inputs keep their values instead: rows are repeated from the first on,
                columns from the last.
        """
        generator = torch.Generator().manual_seed(seed)
        made = {}
        for name, value in self.tensors.items():
            shape = list(value.shape)
            for dim, axis in self.axes.get(name, {}).items():
                shape[dim] = sizes.get(axis, shape[dim])
            if keep(name, value):
                made[name] = repeat(value, shape)
            elif self.pads(name):
                made[name] = ragged(shape, value)
            elif MASK in name:
                made[name] = repeat(value, shape)
            else:
                made[name] = draw(value, shape, generator)
        return replace(self, tensors=made)

    def pads(self, name: str) -> bool:
        """Whether this is a padding mask, (batch, sequence), and not one of positions by positions."""
        value, axis = self.tensors[name], self.axes.get(name, {}).get(0)
        if not is_mask(name, value) or axis is not None:
            return is_mask(name, value) and str(axis).endswith(BATCH)
        data = next(iter(self.tensors.values()))
        return value.shape[:1] == data.shape[:1] != value.shape[1:]

    def settled(self) -> Iterator[Inputs]:
        """These inputs with whole numbers of fixed shape as constants, as few as may do first.

        Such numbers tell how the first input, the data itself, is laid out: ``grid_thw`` of patches, the
        type of each token. Padding masks come last: they are worth keeping.
        """
        _, *others = self.tensors
        told = [
            name
            for name in others
            if not (self.tensors[name].is_floating_point() or self.axes.get(name))
        ]
        masks = [name for name in told if is_mask(name, self.tensors[name])]
        if 0 < len(masks) < len(told):
            yield self._without([name for name in told if name not in masks])
        if told:
            yield self._without(told)

    def _without(self, settled: Collection[str]) -> Inputs:
        constants = {name: self.tensors[name] for name in settled}
        notes = [
            f"{name} is fixed at {_spelled(value)}: the graph follows from it"
            for name, value in constants.items()
        ]
        return replace(
            self,
            tensors={n: value for n, value in self.tensors.items() if n not in constants},
            constants={**self.constants, **constants},
            axes={name: axes for name, axes in self.axes.items() if name not in constants},
            notes=(*self.notes, *notes),
        )

    def on(self, device: torch.device, floats: torch.dtype) -> Inputs:
        """The same inputs on ``device``, floating point ones in dtype ``floats``."""
        moved = {
            name: value.to(device, floats if value.is_floating_point() else value.dtype)
            for name, value in self.tensors.items()
        }
        return replace(self, tensors=moved)


def collect(
    model: nn.Module,
    given: Any = None,
    dynamic: bool | Axes = True,
    option: str = "example_inputs",
) -> Inputs:
    """Name the inputs given by the user, or those that the model's own configuration describes.

    Args:
        model: The model that will be exported.
        given: A tensor, a tuple of positional or a mapping of named inputs, or None.
        dynamic: True makes the batch and the length of token inputs dynamic, False fixes every
            shape, a mapping names exactly the dynamic dimensions.
        option: What the user calls them.

    Raises:
        ExportError: If the inputs do not fit the model's ``forward`` or the axes do not fit them.
        CaptureError: If nothing is given and the model does not tell what it takes.
    """
    bound = _bind(model, example_inputs(model, given), option)
    tensors = {name: value for name, value in bound.items() if isinstance(value, Tensor)}
    constants = {name: value for name, value in bound.items() if not isinstance(value, Tensor)}
    nested = [n for n, v in constants.items() if isinstance(v, list | tuple | dict)]
    if nested or not tensors:
        raise ExportError(
            f"the {_words(option)} of {type(model).__name__} do not fit an ONNX graph",
            where=", ".join(nested) or option,
            why="an ONNX graph takes tensors, one a name",
            remedy="wrap the model in a module whose forward takes plain tensors",
        )
    _check_values(tensors, option)
    axes, notes = usual_axes(tensors) if dynamic is True else (dict(dynamic or {}), ())
    check_axes(tensors, axes)
    notes = (*notes, *_of_segments(model, tensors))
    return Inputs(tensors, constants, axes, notes, proposed=dynamic is True)


def everything(name: str, value: Tensor) -> bool:
    """Of inputs all: a :data:`Choice`."""
    return True


def identifier(name: str) -> str:
    """The name of an input in Python, ``past_key_values_0_key`` for ``past_key_values.0.key``."""
    return name.replace(".", "_")


def _words(option: str) -> str:
    return option.replace("_", " ")


def _bind(model: nn.Module, inputs: ExampleInputs, option: str) -> dict[str, Any]:
    signature = inspect.signature(model.forward)
    try:
        bound = signature.bind(*inputs.args, **inputs.kwargs).arguments
    except TypeError as error:
        raise ExportError(
            f"the {_words(option)} do not fit {type(model).__name__}.forward",
            where=str(signature),
            why=str(error),
            remedy=f"pass {option}= as a tensor, a tuple or a dict that forward accepts",
        ) from error
    open_ended = [p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]
    extra = [bound.pop(name) for name in open_ended if name in bound]
    return {**bound, **(extra[0] if extra else {})}


def _check_values(tensors: Mapping[str, Tensor], option: str) -> None:
    """Values from which others are drawn: there must be some, and NaN would hide every difference."""
    for name, value in tensors.items():
        empty = 0 in value.shape[:2]  # batch or length; of features there may be none of a kind
        if empty or value.is_meta or bool(value.isnan().any()):
            raise ExportError(
                f"{name} holds {'NaN' if not (empty or value.is_meta) else 'no value'}",
                where=f"{option}: {name} {tuple(value.shape)}, {value.device}",
                why="verification runs the model on values like these",
                remedy=f"pass {option}= such as the model will see",
            )


def _of_segments(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """Tokenizers make ``token_type_ids`` for many models, and a file refuses what is no input of it."""
    kinds = getattr(getattr(model, "config", None), "type_vocab_size", None) or 0
    taken = inspect.signature(model.forward).parameters
    if kinds > 1 and _SEGMENTS in taken and _SEGMENTS not in tensors:
        yield f"{_SEGMENTS} is no input of the file, but all 0: pass example_inputs= with it to feed pairs of texts"


def _spelled(value: Tensor) -> str:
    if value.numel() <= _SPELLED:
        return str(value.tolist())
    return f"the values given, {tuple(value.shape)}"
