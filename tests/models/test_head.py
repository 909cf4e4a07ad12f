"""The chunked loss is plain cross-entropy, forward and backward."""

import pytest
import torch
import torch.nn.functional as F
from transformers import CONFIG_MAPPING

from shortened_llm.errors import BadInputError
from shortened_llm.models import head
from shortened_llm.models.head import check_head, next_token_labels, sequence_nll, token_nll
from shortened_llm.models.toy import build_toy
from tests.conftest import SaveModel
from tests.models.families import FAMILIES


@pytest.mark.parametrize("family", ["llama_tied", "gemma2", "gpt_neox"])
@pytest.mark.parametrize("chunk_tokens", [3, 16, 1000])
def test_equals_cross_entropy_of_the_models_own_logits(
    family: str, chunk_tokens: int, save_random_model: SaveModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "CHUNK_TOKENS", chunk_tokens)
    model, _ = save_random_model(FAMILIES[family])
    tokens = torch.randint(3, 97, (3, 20))
    sums = sequence_nll(model, tokens, next_token_labels(tokens))
    logits = model(input_ids=tokens).logits[:, :-1].float()
    of_tokens = F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
    torch.testing.assert_close(
        token_nll(model, tokens, next_token_labels(tokens)), F.pad(of_tokens, (0, 1)), rtol=1e-5, atol=1e-5
    )
    expected = of_tokens.sum(dim=1)
    torch.testing.assert_close(sums, expected, rtol=1e-5, atol=1e-5)
    parameters = [p for p in model.parameters() if p.requires_grad]
    for ours, theirs in zip(
        torch.autograd.grad(sums.sum(), parameters, allow_unused=True),
        torch.autograd.grad(expected.sum(), parameters, allow_unused=True),
        strict=True,
    ):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "values"),
    [
        ("falcon_h1", {"lm_head_multiplier": 0.05}),
        ("granite", {"logits_scaling": 8.0}),
        ("cohere", {"logit_scale": 0.0625}),
        ("gemma2", {"final_logit_softcapping": 0.5}),
        ("recurrent_gemma", {"logits_soft_cap": 0.5}),
        ("xlstm", {"output_logit_soft_cap": 0.5}),
    ],
)
def test_what_a_family_makes_of_its_logits_is_known_or_refused(
    family: str, values: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CONFIG_MAPPING[family](num_hidden_layers=2, vocab_size=97, pad_token_id=0, **values)
    model = build_toy(config)
    check_head(model)
    monkeypatch.setattr(head, "LOGIT_RULES", ())
    with pytest.raises(BadInputError, match=f"{family} models make their logits .* not known here"):
        check_head(model)


def test_labels_are_the_next_tokens() -> None:
    assert next_token_labels(torch.tensor([[5, 6, 7]])).tolist() == [[6, 7, head.IGNORE]]
