"""What surgery itself costs on a GPU: applying, starting on singular directions, folding, recomposing."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaModel

import surgery
from benchmarks.clocks import wall
from benchmarks.cuda.placed import placed, read
from benchmarks.speed_cases import ROLES, Case, policy, recomposition, with_peft
from benchmarks.speed_subjects import GPU, Subject, subjects
from surgery.adapters import LoRA, cache

ROUNDS = 3
STD = 0.01
"""Of the B that are folded."""
LORA = policy("q,v", "lora", 8)
_LLAMA_8B = {
    "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
    "vocab_size": 1024, "use_cache": False,
}  # fmt: skip
_NARROW = _LLAMA_8B | {"hidden_size": 512, "intermediate_size": 1024}


def rows(device: str, depth: int) -> Iterator[dict[str, Any]]:
    """ViT-B, and four layers of Llama-8B's shape (narrow ones in a rehearsal), in bfloat16; q,v at rank 8."""
    vit = next(s for s in subjects(depth, GPU | {"ViT-B": (4,)}) if s.name.startswith("ViT-B"))
    shape = LlamaConfig(
        num_hidden_layers=min(depth, 4), **(_LLAMA_8B if device == "cuda" else _NARROW)
    )
    tokens = {"input_ids": torch.randint(0, 1000, (1, 128))}
    llama = Subject("4 layers of Llama-8B", partial(LlamaModel, shape), "embed_tokens", tokens)
    for subject, singular in (vit, None), (llama, 2):
        yield row(placed(subject, device, torch.bfloat16), read(subject), singular, device)


class Notes:
    """Wall times by name."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def time(self, name: str, call: Callable[[], object]) -> None:
        """Time one call."""
        self.seconds[name].append(wall(call, self.device))

    def milliseconds(self) -> dict[str, float]:
        """Medians."""
        return {name: round(1e3 * statistics.median(s), 2) for name, s in self.seconds.items()}


def row(
    subject: Subject, anatomy: surgery.Anatomy, singular: int | None, device: str
) -> dict[str, Any]:
    """Medians of wall times; singular starts of the first ``singular`` modules, on both sides."""
    plan = surgery.plan(subject.make(), LORA, anatomy=anatomy)
    modules = list(dict.fromkeys(operation.projection.module for operation in plan.operations))
    notes = Notes(device)
    for turn in range(ROUNDS + 1):
        if turn == 1:  # the first warms up
            notes.seconds.clear()
        starts_and_folds(subject, anatomy, modules, notes)
    for _ in range(ROUNDS):
        singular_starts(subject, anatomy, modules[:singular], notes)
    about = {"model": subject.name, "adapted": len(modules), "singular": len(modules[:singular])}
    return about | {
        "milliseconds": notes.milliseconds(),
        "wrongly rounded": {
            "fold": wrong_after_fold(subject, anatomy),
            "merge_and_unload": wrong_after_merge(subject, modules),
        },
    }


def starts_and_folds(
    subject: Subject, anatomy: surgery.Anatomy, modules: list[str], notes: Notes
) -> None:
    """LoRA put on, taken off and folded."""
    model = subject.make()
    notes.time("plan + apply", partial(surgery.apply, model, LORA, anatomy=anatomy))
    notes.time("undo", partial(surgery.undo, model))
    surgery.apply(model, LORA, anatomy=anatomy)
    notes.time("fold", partial(surgery.fold, model))
    fresh = subject.make()
    notes.time("get_peft_model", partial(with_peft, fresh, modules, 8))
    wrapped: Any = with_peft(subject.make(), modules, 8)
    notes.time("merge_and_unload", wrapped.merge_and_unload)


def singular_starts(
    subject: Subject, anatomy: surgery.Anatomy, modules: list[str], notes: Notes
) -> None:
    """PiSSA's start, ours and both of PEFT's, and a recomposition of SRLoRA on the same modules.

    Ours is timed without the cache of directions, when they are kept in it, and when they are read from it.
    """
    model = subject.make()
    some = {"select": [{"modules": modules, "roles": ROLES["q,v"]}], "adapter": "pissa"}
    ours = partial(surgery.apply, model, some, anatomy=anatomy)
    with tempfile.TemporaryDirectory() as folder:
        for name, where in ("", "off"), (", kept", folder), (", read", folder):
            with patch.dict(os.environ, {cache.FOLDER: where}):
                notes.time(f"plan + apply, pissa{name}", ours)
            surgery.undo(model)
    for start in "pissa", "pissa_niter_4":
        fresh, options = subject.make(), {"init_lora_weights": start}
        notes.time(f"get_peft_model, {start}", partial(with_peft, fresh, modules, 8, **options))
    surgery.apply(model, some, anatomy=anatomy, adapter="srlora", target_rank=16)
    switch = recomposition(Case(model), subject.batch, partial(wall, device=notes.device))
    notes.seconds["recomposition"].append(switch)


@torch.no_grad()
def wrong_after_fold(subject: Subject, anatomy: surgery.Anatomy) -> str:
    """Weights of ours that are not the nearest values to base + B A."""
    model = surgery.apply(subject.make(), LORA, anatomy=anatomy)
    plain, exact = subject.make(), []
    for operation in surgery.plan(plain, LORA, anatomy=anatomy).operations:
        p, adapter = operation.projection, model.get_submodule(operation.path)
        assert isinstance(adapter, LoRA) and len(p.rows) == 1
        adapter.B.normal_(std=STD)
        rows = plain.get_parameter(p.weight_name).double()[slice(*p.rows[0])]
        exact.append((p, rows + adapter.delta()))
    surgery.fold(model)
    return _wrong(
        [(model.get_parameter(p.weight_name)[slice(*p.rows[0])], sums) for p, sums in exact]
    )


@torch.no_grad()
def wrong_after_merge(subject: Subject, modules: list[str]) -> str:
    """The same for PEFT's."""
    wrapped: Any = with_peft(subject.make(), modules, 8)
    exact = []
    for name in modules:
        layer = wrapped.base_model.model.get_submodule(name)
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        b.normal_(std=STD)
        exact.append(layer.weight.double() + b.double() @ a.double())
    merged = wrapped.merge_and_unload()
    return _wrong(
        [(merged.get_submodule(m).weight, e) for m, e in zip(modules, exact, strict=True)]
    )


def _wrong(pairs: list[tuple[Tensor, Tensor]]) -> str:
    """How many values have another one of their type nearer to the exact sum, of how many."""
    wrong = 0
    for value, exact in pairs:
        other = exact.float().to(value.dtype).double()
        wrong += int(((value.double() - exact).abs() > (other - exact).abs()).sum())
    return f"{wrong} of {sum(value.numel() for value, _ in pairs)}"
