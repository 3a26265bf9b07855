"""What the demo measured: plain data, which the report draws and ``results.json`` keeps."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Digit:
    """A test image that one model reads and the other does not.

    Attributes:
        image: PNG as a data URI.
        truth: Its label.
        frozen: What the frozen features with a linear head said.
        adapted: What the adapted model said.
    """

    image: str
    truth: int
    frozen: int
    adapted: int


@dataclass(frozen=True)
class Accuracy:
    """Correct answers out of ``total`` test images, before and after."""

    frozen: int
    adapted: int
    total: int
    rescued: tuple[Digit, ...] = ()


@dataclass(frozen=True)
class Training:
    """The fine-tuning run.

    Attributes:
        losses: Cross-entropy of each step's batch.
        switches: Steps at which SRLoRA recomposed.
        steps: Optimizer steps.
        batch: Images a step.
        learning_rate: Peak rate of AdamW.
        images: Size of the training set.
        adapter_weights: Trained numbers in adapters.
        head_weights: Trained numbers in the head.
        total_weights: All weights of the plain model.
    """

    losses: tuple[float, ...]
    switches: tuple[int, ...]
    steps: int
    batch: int
    learning_rate: float
    images: int
    adapter_weights: int
    head_weights: int
    total_weights: int


@dataclass(frozen=True)
class Organ:
    """One row of the map of the model: a role, and whether each block's projection was adapted."""

    role: str
    adapted: tuple[bool, ...]


@dataclass(frozen=True)
class File:
    """An exported file.

    Attributes:
        name: ``portable`` or ``fused``.
        path: File name.
        size: Bytes.
        nodes: Graph nodes.
        parity: Largest |difference| over largest |reference|, against the folded torch model.
        tolerance: What parity may be at most.
        agreement: Share of real images with the same top answer as the torch model.
        expected: Fused operators that should be in the file, by name.
        found: Fused operators that are.
    """

    name: str
    path: str
    size: int
    nodes: int
    parity: float
    tolerance: float
    agreement: float | None
    expected: dict[str, int]
    found: dict[str, int]


@dataclass(frozen=True)
class Latency:
    """Milliseconds a call: the median, and the ends of the middle 80 % of the calls."""

    name: str
    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Latencies:
    """A comparison in one process, where the contenders took turns.

    Attributes:
        rows: The contenders, eager PyTorch first.
        batch: Images a call.
        threads: Threads each may use.
        calls: Measured calls of each.
        notes: Who could not take part, and why.
    """

    rows: tuple[Latency, ...]
    batch: int
    threads: int
    calls: int
    notes: tuple[str, ...] = ()

    def speedup(self, row: Latency) -> float:
        """How many times faster than eager PyTorch."""
        return self.rows[0].median / row.median

    @property
    def fastest(self) -> Latency:
        """The contender with the lowest median."""
        return min(self.rows, key=lambda row: row.median)


@dataclass(frozen=True)
class Check:
    """Something that was verified, with the evidence."""

    name: str
    evidence: str
    passed: bool


@dataclass(frozen=True)
class Stage:
    """Wall time of one part of the job."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Results:
    """Everything the report shows.

    Attributes:
        adapter: Display name, such as ``SymLoRA``.
        policy: Name of the policy.
        rank: Rank of every adapter.
        weights: What the pretrained weights are, exactly.
        images: What the images are, exactly.
        seed: Seed of head, adapters and order of images (the split has its own, fixed).
        peak_memory: Largest resident size of the process, bytes.
        environment: Versions, processor and threads.
    """

    adapter: str
    policy: str
    rank: int
    weights: str
    images: str
    seed: int
    accuracy: Accuracy
    training: Training
    organs: tuple[Organ, ...]
    checks: tuple[Check, ...]
    files: tuple[File, ...]
    latency: Latencies
    stages: tuple[Stage, ...]
    peak_memory: int
    environment: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without the pictures."""
        plain = asdict(self)
        del plain["accuracy"]["rescued"]
        return plain
