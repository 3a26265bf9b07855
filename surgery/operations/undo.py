"""Giving the model back exactly as it was, bit for bit."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from surgery.operations.state import adapted_model, restore

Model = TypeVar("Model", bound=nn.Module)


def undo(model: Model) -> Model:
    """Take the adapters out, in place, and restore every bit that the operation or training changed.

    Nothing is subtracted: corrected weights, what else trained and the buffers come from copies made
    by ``apply``. Classes, state-dict keys and ``requires_grad`` flags are those of before.

    Returns:
        The same model.

    Raises:
        StateError: If nothing is applied to the model.
    """
    restore(*adapted_model(model, "undo"))
    return model
