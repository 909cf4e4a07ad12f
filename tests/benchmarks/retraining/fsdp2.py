"""accelerate's FSDP2 in gloo processes: the loop of its documentation around its own `prepare`.

accelerate 1.15 knows FSDP on accelerators alone: given an FSDP plugin and gloo processes, its state becomes MULTI_CPU
(state.py: only MULTI_GPU and its like turn into FSDP), and `prepare` would wrap the model in DDP without a word. What
follows FSDP in accelerate does work on CPU, so the state is set by hand and everything else is its own.
"""

import os
import time

import torch
import torch.distributed as dist
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from shortened_llm.models.build import DTYPES
from shortened_llm.models.cpu import fair_threads
from shortened_llm.models.load import load_model
from shortened_llm.retraining.job import RetrainingJob
from shortened_llm.retraining.schedule import learning_rate
from tests.benchmarks.retraining.processes import Place
from tests.benchmarks.retraining.setup import step_tokens


def with_accelerate(place: Place, job: RetrainingJob, reduce_dtype: str) -> dict:
    """When each step ended (seconds), and the mean loss of each over the processes."""
    recipe, processes = job.recipe, place.world_size
    # Or accelerate chooses the number of threads.
    os.environ |= {"OMP_NUM_THREADS": str(fair_threads(processes)), "WORLD_SIZE": str(processes)}
    os.environ |= {"RANK": str(place.rank), "LOCAL_RANK": str(place.rank), "LOCAL_WORLD_SIZE": str(processes)}
    ends, losses = {}, []
    with place.process_group():
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            reshard_after_forward=False,  # as ours where the model fits
            mixed_precision_policy=MixedPrecisionPolicy(
                param_dtype=DTYPES[job.dtype], reduce_dtype=DTYPES[reduce_dtype]
            ),
        )
        accelerator = Accelerator(cpu=True, mixed_precision="bf16", fsdp_plugin=plugin)
        if accelerator.distributed_type != DistributedType.FSDP:
            accelerator.state.distributed_type, accelerator.state.fsdp_plugin = DistributedType.FSDP, plugin
        model = load_model(job.model, "float32").train()
        optimizer = AdamW(
            [
                {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": recipe.weight_decay},
                {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
            ],
            lr=recipe.learning_rate, betas=recipe.betas, fused=True,
        )  # fmt: skip
        model, optimizer = accelerator.prepare(model, optimizer)
        assert isinstance(model, FSDPModule)
        # Not prepared: that would advance it once for each process.
        schedule = LambdaLR(optimizer.optimizer, lambda step: learning_rate(step, recipe) / recipe.learning_rate)
        for step, tokens in enumerate(step_tokens(job, rank=place.rank, world_size=processes), start=1):
            loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), recipe.max_gradient_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            ends[step] = time.perf_counter()
            losses.append(loss.detach().float())
        means = torch.stack(losses)
        dist.all_reduce(means)
    return {"ends": ends, "losses": dict(enumerate((means / processes).tolist(), start=1))}
