"""Continued pretraining, ours against a plain loop: quality at equal tokens, and tokens per second.

SmolLM2-135M without the 20 % of blocks that perplexity ranks lowest, the same 20,480 tokens in the same order:
(a) one process, torch alone: float32 weights, bfloat16 autocast, AdamW; (b) our loop, one process; (c) our loop, two
processes. Needs `python -m jobs.assets demo`.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from transformers import PreTrainedModel

from shortened_llm.config import CalibrationConfig, CptConfig, PerplexitySource, RetrainingConfig, TextSource
from shortened_llm.data.calibration import calibration_tokens
from shortened_llm.data.order import sequence_at
from shortened_llm.data.packing import TokenSequences, pack_tokens
from shortened_llm.data.sources import Documents
from shortened_llm.evaluation.perplexity import measure_perplexity, text_segments
from shortened_llm.models.cpu import fair_threads, prepare_cpu
from shortened_llm.models.load import load_config, load_model, load_tokenizer
from shortened_llm.models.stream import StreamedModel
from shortened_llm.records import ModelRef, RetrainedModel
from shortened_llm.retraining.export import KIND, export_sharded
from shortened_llm.retraining.job import RetrainingJob
from shortened_llm.retraining.loop import train
from shortened_llm.retraining.schedule import learning_rate_factor
from shortened_llm.scoring.one_pass import NLL, walk_statistics
from shortened_llm.scoring.ppl import ppl_scores
from shortened_llm.storage.payload import describe_files
from shortened_llm.storage.store import Store

REMOVED, PROTECT_FIRST, PROTECT_LAST = 6, 4, 2
CONFIG = RetrainingConfig(
    data=(TextSource(path="unused"),),
    tokens=20_480,
    sequence_length=256,
    global_batch_size=4,
    micro_batch_size=4,
    checkpoint_tokens=20_480,
    cpt=CptConfig(learning_rate=(3e-4,), warmup_ratio=0.1),
)


@dataclass(frozen=True, kw_only=True)
class Measured:
    name: str
    tokens_per_second: float
    perplexity: dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--assets", type=Path, default=Path("~/.cache/shortened_llm/assets"))
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    assets = options.assets.expanduser()
    prepare_cpu(fair_threads(1))
    with tempfile.TemporaryDirectory() as temporary:
        store = Store.at(temporary)
        job, evaluate = prepare(assets, store)
        results = [
            Measured(name="untrained", tokens_per_second=0.0, perplexity=evaluate(load_model(job.model, "bfloat16"))),
            plain(job, evaluate),
            ours(job, evaluate, store, processes=1),
            ours(job, evaluate, store, processes=2),
        ]
    texts = list(results[0].perplexity)
    print(f"{'loop':<24}{'tokens/s':>10}" + "".join(f"{text:>12}" for text in texts))
    for result in results:
        speed = f"{result.tokens_per_second:.0f}" if result.tokens_per_second else "-"
        print(f"{result.name:<24}{speed:>10}" + "".join(f"{result.perplexity[text]:>12.2f}" for text in texts))
    base = results[1]
    for result in results[2:]:
        shares = ", ".join(f"{text} {result.perplexity[text] / base.perplexity[text]:.3f}" for text in texts)
        speed = result.tokens_per_second / base.tokens_per_second
        print(f"{result.name} / {base.name}: tokens/s {speed:.2f}, perplexity {shares}")
    if options.json:
        options.json.write_text(json.dumps([vars(result) for result in results], indent=2))


def prepare(assets: Path, store: Store) -> tuple[RetrainingJob, Callable[[PreTrainedModel], dict[str, float]]]:
    """The job, and what scores a model on held-out documents and on a source never trained on."""
    directory = assets / "smollm2-135m-instruct"
    blocks = load_config(directory).num_hidden_layers
    dense = ModelRef(url=str(directory), fingerprint="smollm2", files=describe_files(directory), num_blocks=blocks)
    tokenizer = load_tokenizer(directory)

    def documents(name: str, purpose: str, *, shared: bool = True) -> Documents:
        source = TextSource(path=str(assets / f"texts/{name}.jsonl"))
        others = tuple({"train", "selection", "report"} - {purpose}) if shared else ()
        return Documents(
            source=source,
            purpose=purpose,  # type: ignore[arg-type]
            shared_with=others,  # type: ignore[arg-type]
            files=(source.path,),
            commit=None,
            field_path=name,
        )

    wiki = documents("wiki", "train")
    settings = CalibrationConfig(path=wiki.source.path)
    calibration = calibration_tokens(wiki, settings, tokenizer, vocab_size=len(tokenizer), bos=False)
    streamed = StreamedModel.open(dense, "bfloat16")
    walked = walk_statistics(streamed, calibration, [NLL], memory_gib=None, on_progress=lambda *_: None)
    scores = ppl_scores(walked[NLL])
    removable = [b for b in scores.order if PROTECT_FIRST <= b < blocks - PROTECT_LAST]
    kept = tuple(sorted(set(range(blocks)) - set(removable[:REMOVED])))
    train_texts = (wiki, documents("c4", "train"))
    tokens = pack_tokens(train_texts, tokenizer, "smollm2", 256, 80, store, on_progress=lambda _: None)
    job = RetrainingJob(
        model=dense.view(kept), tokens=tokens, config=CONFIG, method="cpt", learning_rate=3e-4, dtype="bfloat16"
    )
    held_out = {}
    for text in (documents("wiki", "report"), documents("c4", "report"), documents("news", "report", shared=False)):
        source = PerplexitySource(path=text.source.path, segment_length=256, max_tokens=8192)
        held_out[text.source.label] = (text, source, text_segments(text, source, tokenizer))

    def evaluate(model: PreTrainedModel) -> dict[str, float]:
        return {
            name: measure_perplexity(model, segments, text, source, batch_size=8).perplexity
            for name, (text, source, segments) in held_out.items()
        }

    return job, evaluate


def plain(job: RetrainingJob, evaluate: Callable[[PreTrainedModel], dict[str, float]]) -> Measured:
    """A loop from torch alone, as one would write it for a single process."""
    model = load_model(job.model, "float32").train()
    optimizer = torch.optim.AdamW(model.parameters(), betas=CONFIG.cpt.betas, weight_decay=CONFIG.cpt.weight_decay)
    sequences = TokenSequences(job.tokens)
    started = time.monotonic()
    for step in range(CONFIG.num_steps):
        positions = range(step * CONFIG.global_batch_size, (step + 1) * CONFIG.global_batch_size)
        indices = [sequence_at(p, seed=CONFIG.seed, num_sequences=job.tokens.num_sequences) for p in positions]
        batch = torch.tensor([sequences[index].tolist() for index in indices])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=batch).logits[:, :-1]
        F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CONFIG.cpt.max_gradient_norm)
        for group in optimizer.param_groups:
            group["lr"] = job.learning_rate * learning_rate_factor(step, CONFIG.num_steps, CONFIG.cpt)
        optimizer.step()
        optimizer.zero_grad()
    seconds = time.monotonic() - started
    perplexity = evaluate(model.to(torch.bfloat16).eval())
    return Measured(name="plain loop", tokens_per_second=CONFIG.tokens / seconds, perplexity=perplexity)


def ours(
    job: RetrainingJob, evaluate: Callable[[PreTrainedModel], dict[str, float]], store: Store, *, processes: int
) -> Measured:
    """The package's loop in one or two processes, without Ray."""
    job = replace(job, config=job.config.model_copy(update={"micro_batch_size": 4 // processes}))
    store.remove(KIND, job.fingerprint)
    rendezvous = f"{tempfile.mkdtemp()}/rendezvous"
    mp.spawn(_worker, args=(processes, rendezvous, job, store), nprocs=processes)
    done = store.read(KIND, job.fingerprint, RetrainedModel)
    assert done is not None
    return Measured(
        name=f"ours, {processes} process(es)",
        tokens_per_second=done.tokens / done.seconds,
        perplexity=evaluate(load_model(done.model, "bfloat16")),
    )


def _worker(rank: int, processes: int, rendezvous: str, job: RetrainingJob, store: Store) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    prepare_cpu(fair_threads(processes))
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=processes)
    model, progress = train(job, device=torch.device("cpu"), resume_from=None, report=lambda *_: None)
    exported = export_sharded(model, job, store, rank=rank)
    if exported is not None:
        record = RetrainedModel(
            model=exported, tokens=CONFIG.tokens, seconds=progress.seconds, history=progress.history
        )
        store.write(KIND, job.fingerprint, record, identity=job.identity)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
