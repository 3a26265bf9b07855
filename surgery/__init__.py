"""Name-free model surgery: read what a model is, adapt exactly what a policy asks for, fold it away."""

from __future__ import annotations

from surgery.anatomy.read import read
from surgery.anatomy.types import Access, Anatomy, AttentionSite, FeedForward, Layout, Projection
from surgery.anatomy.verify import Verification, verify
from surgery.errors import SurgeryError

__all__ = [
    "Access",
    "Anatomy",
    "AttentionSite",
    "FeedForward",
    "Layout",
    "Projection",
    "SurgeryError",
    "Verification",
    "read",
    "verify",
]
