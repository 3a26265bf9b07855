"""The parts of a model that has several: towers by what they look at, and the two sides of cross-attention."""

from __future__ import annotations

from enum import StrEnum


class Part(StrEnum):
    """A part of a model, told by what flows into it and never by a name; see docs/anatomy.md."""

    VISION = "vision"
    """Reached by images, and by no text or sound."""
    TEXT = "text"
    """Reached by text; in a vision-language model also what reads text and images together."""
    AUDIO = "audio"
    """Reached by sound, and by no text or images."""
    ENCODER = "encoder"
    """What the keys of a cross-attention are made from."""
    DECODER = "decoder"
    """What looks at an encoder through cross-attention, and what follows."""
