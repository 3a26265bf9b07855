"""The schema of a training file: model, policy, data, optimizer, schedule, output."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator

from policies.schema import Strict

Shape = Literal["cosine", "linear", "constant"]
Precision = Literal["fp32", "bf16", "fp16"]


def _named(value: Any) -> Any:
    """``timm:NAME`` alone is a model, ``vit-attn-qv`` alone a policy."""
    return {"name": value} if isinstance(value, str) else value


class ModelSpec(Strict):
    """Which model, with which weights."""

    name: str = Field(
        pattern=r"^[^:]+:.+$",
        description="timm:NAME, hf:FOLDER-or-ID, or module.path:factory",
    )
    pretrained: bool | None = Field(
        None, description="published weights; none: an hf folder's own, else random"
    )
    checkpoint: str | None = Field(None, description="state dict to load")
    set: dict[str, Any] = Field(
        default_factory=dict, description="for create_model, the configuration, or the factory"
    )


class PolicySpec(Strict):
    """A policy by name or path, and what is overridden in it.

    Further keys are overrides, as in ``surgery.plan``: adapter, budget, alpha, depth, roles, train, and the
    adapter's own options.
    """

    model_config = ConfigDict(extra="allow", json_schema_extra={"additionalProperties": True})

    name: str = Field("vit-attn-qv", description="name or path of the policy")
    rank: Any = Field(
        None,
        description="of every adapter, or by depth; auto: each projection's is measured, within the budget, or "
        "within what the policy's own ranks would train",
        json_schema_extra={"type": ["integer", "string", "object", "null"]},
    )
    batches: int = Field(8, ge=1, le=10**6, description="of training data that rank: auto looks at")

    @field_validator("rank")
    @classmethod
    def _is_no_other_word(cls, rank: Any) -> Any:
        if isinstance(rank, str) and rank != "auto":
            raise ValueError(
                f"{rank!r} is no rank: give a number, ranks by depth, or the word auto"
            )
        return rank

    @property
    def measured(self) -> bool:
        """Whether the data decide the ranks."""
        return bool(self.rank == "auto")

    @property
    def overrides(self) -> dict[str, Any]:
        """What is laid over the policy."""
        return (self.model_extra or {}) | ({} if self.measured else {"rank": self.rank})


class DataSpec(Strict):
    """What is learned from. Exactly one of ``images``, ``dataset`` and ``table`` is given."""

    images: str | None = Field(
        None, description="folder of a folder a class, or of train/ and val/ that hold those"
    )
    dataset: str | None = Field(None, description="what datasets' save_to_disk wrote")
    table: str | None = Field(None, description="a .csv, .tsv or .jsonl file of texts")
    validation: str | None = Field(
        None, description="another folder or file, or the name of the dataset's split"
    )
    split: float = Field(
        0.1, gt=0, lt=1, description="share held back if there is no validation data"
    )
    image: str | None = Field(None, description="column of the images; none: the image column")
    text: str = Field("text", description="column of the texts")
    label: str | None = Field("label", description="column of the labels; null: learn the texts")
    tokenizer: str | None = Field(None, description="folder or ID; none: the hf model's own")
    max_length: int = Field(128, ge=1, le=1_000_000, description="tokens of a text, at most")
    size: int | None = Field(None, ge=1, le=65536, description="pixels a side; none: the model's")
    augment: bool = Field(True, description="random crops and flips while training")
    workers: int = Field(0, ge=0, le=1024, description="processes that load data")

    @model_validator(mode="after")
    def _one_source(self) -> DataSpec:
        given = [name for name in ("images", "dataset", "table") if getattr(self, name)]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise ValueError(f"give one of images, dataset, table; here is {found}")
        return self


class OptimizerSpec(Strict):
    """How the weights move. Names are timm's, which include torch's."""

    name: str = Field("adamw", description="adamw, sgd, lion, ...: timm.optim.list_optimizers()")
    lr: float = Field(3e-3, gt=0, le=1e3, description="peak learning rate")
    weight_decay: float = Field(0.0, ge=0, le=1e3)
    clip: float = Field(1.0, ge=0, le=1e6, description="largest gradient norm; 0 clips nothing")
    options: dict[str, Any] = Field(default_factory=dict, description="betas, momentum, ...")


class ScheduleSpec(Strict):
    """How long, in which steps, and when to look."""

    epochs: float = Field(3, gt=0, le=1e6)
    steps: int | None = Field(
        None, ge=1, le=10**9, description="optimizer steps, instead of epochs"
    )
    batch: int = Field(32, ge=1, le=10**6, description="samples a process takes at once")
    accumulate: int = Field(1, ge=1, le=10**6, description="such batches an optimizer step")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps")
    shape: Shape = Field("cosine", description="of the learning rate after the warm-up")
    evaluate_every: int | None = Field(
        None, ge=1, le=10**9, description="steps between evaluations; none: an epoch"
    )
    early_stop: int | None = Field(
        None, ge=1, le=10**6, description="evaluations without progress after which it ends"
    )
    watch: Literal["loss", "accuracy"] = Field("loss", description="what decides which is best")
    label_smoothing: float = Field(0.0, ge=0, lt=1)


class OutputSpec(Strict):
    """Where the results go."""

    folder: str = Field(min_length=1, description="the run folder")
    keep: Literal["best", "last"] = Field("best", description="which weights the adapter file has")
    tensorboard: bool = Field(True, description="whether event files are written, too")


class RunSpec(Strict):
    """One training: everything that decides its result."""

    model: Annotated[ModelSpec, BeforeValidator(_named)]
    policy: Annotated[PolicySpec, BeforeValidator(_named)]
    data: DataSpec
    optimizer: OptimizerSpec = OptimizerSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    output: OutputSpec
    precision: Precision = Field("fp32", description="of activations; weights stay as they are")
    device: Literal["auto", "cpu"] = "auto"
    seed: int = Field(0, ge=0, lt=2**32)
