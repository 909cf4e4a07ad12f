"""transformers' `Trainer`, at its best: nothing logged, saved or evaluated; fused AdamW; the sequences in our order."""

import time

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from shortened_llm.models.load import load_model
from shortened_llm.retraining.job import RetrainingJob
from shortened_llm.retraining.schedule import learning_rate
from tests.benchmarks.retraining.processes import Place
from tests.benchmarks.retraining.quality import perplexities
from tests.benchmarks.retraining.setup import step_tokens


def with_trainer(place: Place, job: RetrainingJob, texts: dict[str, torch.Tensor], log_losses: bool) -> dict:
    """When each step ended (seconds), the loss of each where they are logged, and perplexities after training."""
    recipe = job.recipe
    arguments = TrainingArguments(
        output_dir=str(place.directory),
        use_cpu=True,
        bf16=job.dtype == "bfloat16",
        max_steps=recipe.num_steps,
        per_device_train_batch_size=recipe.global_batch_size,
        train_sampling_strategy="sequential",
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        adam_beta1=recipe.betas[0],
        adam_beta2=recipe.betas[1],
        max_grad_norm=recipe.max_gradient_norm,
        optim="adamw_torch_fused",
        logging_strategy="steps" if log_losses else "no",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    rows = [{"input_ids": row, "labels": row} for tokens in step_tokens(job) for row in tokens]
    model = load_model(job.model, "float32").train()
    model.config.use_cache = False
    clock = _Clock()
    trainer = _OnOurSchedule(job, model=model, args=arguments, train_dataset=rows, callbacks=[clock])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return {
        "ends": clock.ends,
        "losses": {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry},
        "perplexity": perplexities(model, texts),
    }


class _OnOurSchedule(Trainer):
    def __init__(self, job: RetrainingJob, **options: object) -> None:
        super().__init__(**options)
        self._recipe = job.recipe

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LambdaLR:
        recipe = self._recipe
        self.lr_scheduler = LambdaLR(
            optimizer or self.optimizer, lambda step: learning_rate(step, recipe) / recipe.learning_rate
        )
        return self.lr_scheduler


class _Clock(TrainerCallback):
    def __init__(self) -> None:
        self.ends: dict[int, float] = {}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        self.ends[state.global_step] = time.perf_counter()
