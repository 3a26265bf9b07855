"""The mathematics: one adapter a file. Adapters know tensors and no models."""

from __future__ import annotations

from surgery.adapters.base import Adapter
from surgery.adapters.frozen_a import FrozenA
from surgery.adapters.lora import LoRA
from surgery.adapters.pissa import PiSSA
from surgery.adapters.polar import Polar
from surgery.adapters.recompose import Recomposed
from surgery.adapters.registry import check_options, get, names, options_of, register
from surgery.adapters.srlora import SRLoRA
from surgery.adapters.sym_srlora import SymSRLoRA
from surgery.adapters.symlora import SymLoRA

__all__ = [
    "Adapter",
    "FrozenA",
    "LoRA",
    "PiSSA",
    "Polar",
    "Recomposed",
    "SRLoRA",
    "SymLoRA",
    "SymSRLoRA",
    "check_options",
    "get",
    "names",
    "options_of",
    "register",
]
