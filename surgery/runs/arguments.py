"""What a training file says, in the words of transformers' ``TrainingArguments``."""

from __future__ import annotations

import torch
from transformers import TrainingArguments

from surgery.runs.folder import RunFolder
from surgery.runs.schema import RunSpec

LOGGED = 200
"""Points of the curves in a whole training."""
_SHAPES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


def training_arguments(spec: RunSpec, folder: RunFolder, *, language: bool) -> TrainingArguments:
    """transformers' arguments; ``language`` says that texts are learned without labels."""
    schedule = spec.schedule
    strategy = "epoch" if schedule.evaluate_every is None else "steps"
    watched = "loss" if language else schedule.watch
    arguments = TrainingArguments(
        output_dir=str(folder.checkpoints),
        per_device_train_batch_size=schedule.batch,
        per_device_eval_batch_size=schedule.batch,
        gradient_accumulation_steps=schedule.accumulate,
        num_train_epochs=schedule.epochs,
        max_steps=schedule.steps or -1,
        learning_rate=spec.optimizer.lr,
        lr_scheduler_type=_SHAPES[schedule.shape],
        warmup_steps=schedule.warmup,
        max_grad_norm=spec.optimizer.clip,
        eval_strategy=strategy,
        eval_steps=schedule.evaluate_every,
        save_strategy=strategy,
        save_steps=schedule.evaluate_every or 500,
        save_total_limit=2,
        load_best_model_at_end=spec.output.keep == "best",
        metric_for_best_model=watched,
        greater_is_better=watched == "accuracy",
        prediction_loss_only=language,
        bf16=spec.precision == "bf16",
        fp16=spec.precision == "fp16",
        use_cpu=spec.device == "cpu",
        seed=spec.seed,
        dataloader_num_workers=spec.data.workers,
        dataloader_pin_memory=torch.cuda.is_available() and spec.device != "cpu",
        remove_unused_columns=False,
        label_names=["labels"],
        logging_strategy="steps",
        logging_steps=1 / LOGGED,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to="none",
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # DataParallel would copy the adapters every step
    return arguments
