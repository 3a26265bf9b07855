"""The error family. Every error says what happened, where, why, and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SurgeryError(Exception):
    """Root of every error that policies, surgery and exporters raise on purpose.

    Args:
        what: One sentence: what could not be done.
        where: The thing it happened to (a module path, a file, a policy line).
        why: The reason, with the offending value.
        remedy: What the reader can do about it.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        why: str | None = None,
        remedy: str | None = None,
    ) -> None:
        self.what, self.where, self.why, self.remedy = what, where, why, remedy
        labelled = (("where", where), ("why", why), ("do", remedy))
        lines = [what, *(f"  {label}: {text}" for label, text in labelled if text)]
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[object, ...]:
        """Errors cross process borders (DataLoader workers, torchrun) with all their parts."""
        return _rebuild, (type(self), self.what, self.where, self.why, self.remedy)


class PolicyError(SurgeryError):
    """A policy is unknown, malformed, or asks for something this model does not have."""


def told_by(error: BaseException) -> str:
    """Type and first line of what somebody else's exception says, which may be nothing."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def told_at_length(error: BaseException, most: int = 300) -> str:
    """Type and text of what somebody else's exception says over many lines: one line, ``most`` characters of text."""
    text = " ".join(str(error).split())[:most]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def nearest(word: str, candidates: Iterable[str]) -> str | None:
    """Return the candidate that ``word`` was probably meant to be, or None."""
    matches = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.5)
    return matches[0] if matches else None


def _rebuild(
    kind: type[SurgeryError], what: str, where: str | None, why: str | None, remedy: str | None
) -> SurgeryError:
    return kind(what, where=where, why=why, remedy=remedy)
