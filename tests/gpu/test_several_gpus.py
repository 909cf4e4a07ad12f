"""A model that is spread over GPUs predicts what it predicts on one; a rehearsal compares it with itself."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from shortened_llm.config import PerplexitySource
from shortened_llm.data.sources import Documents
from shortened_llm.evaluation.agreement import DenseStates, measure_agreement
from shortened_llm.evaluation.perplexity import Segments
from shortened_llm.models.head import next_token_labels, token_nll
from shortened_llm.models.load import load_model
from shortened_llm.records import ModelRef
from tests.gpu.models import random_tokens

pytestmark = pytest.mark.gpu


def test_a_model_over_two_gpus_is_the_one_on_one(
    model_of: Callable[[str], ModelRef], device: torch.device, rehearsed: bool, tmp_path: Path
) -> None:
    if not rehearsed and torch.cuda.device_count() < 2:
        pytest.skip("there are not two GPUs here")
    ref, tokens = model_of("1b"), random_tokens(4, 64)
    one = load_model(ref, "float32", device=device)
    spread = load_model(ref, "float32", device=device, num_gpus=1 if rehearsed else 2)
    assert rehearsed or set(spread.hf_device_map.values()) == {0, 1}

    inputs = tokens.to(one.device)  # also the first device of the other
    losses = [token_nll(model, inputs, next_token_labels(inputs)).cpu() for model in (one, spread)]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
    new = [model.generate(inputs[:1], max_new_tokens=8, do_sample=False) for model in (one, spread)]
    assert torch.equal(*new)

    owners = torch.arange(len(tokens))[:, None].expand(tokens.shape)
    segments = Segments(tokens=tokens, documents=owners, first_new=(1,) * len(tokens))
    source = PerplexitySource(path="random.jsonl", bos="none", segment_length=tokens.shape[1])
    documents = Documents(
        source=source, purpose="report", shared_with=(), files=(), commit=None, field_path="evaluation"
    )
    states = DenseStates.write(one, segments, tmp_path, batch_size=2)
    score = measure_agreement(spread, states, segments, documents, source, batch_size=2)
    assert score.kl < 1e-6
    assert score.top1 == 1
