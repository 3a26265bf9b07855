"""What must hold, asked without the code under test: exact sums, neighbours, photographs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from surgery.operations.state import find_record

_BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def photograph(model: nn.Module) -> dict[str, object]:
    """Everything that an operation could leave behind, comparable with ``==``."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "bits": {name: bits(tensor) for name, tensor in tensors.items()},
        "keys": {name: bits(tensor) for name, tensor in model.state_dict().items()},
        "identity": {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)},
        "flags": {name: p.requires_grad for name, p in model.named_parameters()},
        "grads": {n: None if p.grad is None else bits(p.grad) for n, p in model.named_parameters()},
        "modes": {path: module.training for path, module in model.named_modules()},
        "classes": {path: type(module) for path, module in model.named_modules()},
        "attributes": {path: sorted(vars(module)) for path, module in model.named_modules()},
        "hooks": {
            path: [len(v) for k, v in vars(module).items() if k.endswith("hooks")]
            for path, module in model.named_modules()
        },
    }


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().tobytes()


def exact_weights(model: nn.Module) -> Iterator[tuple[str, np.ndarray, torch.dtype]]:
    """original + corrections + B A for each adapted weight, (out, in) in 80-bit floats.

    Products of two float32 are exact in float64; the sums are made in numpy's longdouble, so they
    carry 11 bits more than the float64 that folding uses.
    """
    sums: dict[str, np.ndarray] = {}
    types: dict[str, torch.dtype] = {}
    for operation in find_record(model).plan.operations:
        p = operation.projection
        owner, adapter = model.get_submodule(p.module), model.get_submodule(operation.path)
        if p.weight_name not in sums:
            original = owner.original(p.parameter).detach()
            matrix = original.t() if str(p.layout) == "in_out" else original.flatten(1)
            sums[p.weight_name] = matrix.double().numpy().astype(np.longdouble)
            types[p.weight_name] = original.dtype
        rows = [channel for run in p.rows for channel in range(*run)]
        for pair in filter(None, (adapter.factors(), adapter.correction())):
            b, a = (factor.detach().double().numpy().astype(np.longdouble) for factor in pair)
            sums[p.weight_name][rows] += b @ a
    for name, total in sums.items():
        yield name, total, types[name]


def wrongly_rounded(found: Tensor, exact: np.ndarray) -> int:
    """How many values of ``found`` have a neighbour in their dtype that is nearer to ``exact``.

    A neighbour counts as nearer if it is so by more than 2**-44 of the value: exact ties and what
    float64 cannot tell from one are left alone.
    """
    found = found.detach().contiguous()
    whole = found.view(_BITS[found.dtype])
    error = abs(_long(found) - exact)
    wrong = np.zeros(exact.shape, dtype=bool)
    for step in (-1, 1):
        beside = torch.where(found == 0, 1, whole + step).to(whole.dtype).view(found.dtype)
        for sign in (1, -1) if step == 1 else (1,):
            other = _long(torch.where(found == 0, sign * beside, beside))
            nearer = abs(other - exact) < error - abs(exact) * np.longdouble(2.0**-44)
            wrong |= nearer & np.isfinite(other.astype(np.float64))
    return int(wrong.sum())


def _long(tensor: Tensor) -> np.ndarray:
    return tensor.double().numpy().astype(np.longdouble)


def as_rows(weight: Tensor, layout: str) -> Tensor:
    return weight.detach().t() if layout == "in_out" else weight.detach().flatten(1)
