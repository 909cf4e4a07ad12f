"""Instruction data: templates, the span of the response, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from shortened_llm.data.batches import TokenSequences
from shortened_llm.data.instructions import ALPACA, ALPACA_WITH_INPUT, Pair, PairEncoder
from shortened_llm.data.packing import check_filled, pack_tokens
from shortened_llm.errors import BadInputError
from shortened_llm.storage.store import Store
from tests.data.sources import instruction_pairs, packing_job

ROWS = [
    {"instruction": "Name a colour.", "input": "", "output": "Blue, like the sea: é 漢字."},
    {"instruction": "Add the numbers.", "input": "1, 2", "output": "3\n\nThat is the sum.\n"},
    {"instruction": "Translate {this}.", "input": None, "output": "  Übersetze {dies}"},
]
CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def pack(tmp_path: Path, tokenizer, store: Store, rows: list[dict], **options: object):
    job = packing_job(instruction_pairs(tmp_path, rows, **options), int(options.get("max_length", 256)))
    dataset = pack_tokens(job, tokenizer, store)
    check_filled(dataset, job)
    return dataset


def test_a_pair_that_no_tokenizer_can_read_is_left_out(tmp_path: Path, tokenizer, local_store: Store) -> None:
    broken = {"instruction": "broken \ud83d emoji", "output": "a"}
    dataset = pack(tmp_path, tokenizer, local_store, [*ROWS * 40, broken])
    assert dataset.num_sequences == 120
    assert "1 of 121 rows cannot be used and are left out: row 120" in dataset.notes[0]


def with_spaces(end: str = "</s>"):
    """A tokenizer of characters that puts a space in front of every text, as Llama 2 does."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    texts = [ALPACA_WITH_INPUT, CHAT, *(value or "" for row in ROWS for value in row.values())]
    characters = sorted({"▁", *"".join(texts)} - {" "})
    vocabulary = {piece: index for index, piece in enumerate(["<s>", end, *characters])}
    built = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    built.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    built.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=built, bos_token="<s>", eos_token=end)


def test_a_response_has_no_space_that_the_tokenizer_puts_in_front(tmp_path: Path) -> None:
    tokenizer = with_spaces()
    assert tokenizer.convert_ids_to_tokens(tokenizer("3")["input_ids"]) == ["▁", "3"]
    tokenizer.chat_template = CHAT
    for template in ("alpaca", "chat"):
        encoder = PairEncoder(instruction_pairs(tmp_path, ROWS, template=template), tokenizer, 600)
        for row in ROWS:
            pair = Pair(instruction=str(row["instruction"]), input=row["input"] or "", response=str(row["output"]))
            encoded = encoder.encode(pair)
            assert encoded is not None
            whole = tokenizer.convert_ids_to_tokens(encoded.tokens)
            assert whole.count("▁") == 1 + "".join(whole[1:]).count("▁"), "one of its own, at the very start"
            response = "".join(whole[encoded.response_start : -1])
            assert response == pair.response.replace(" ", "▁"), template


@pytest.fixture(params=["bytes", "merges", "bos"])
def any_tokenizer(request: pytest.FixtureRequest, tokenizer):
    """Of bytes; one that would merge across the boundary; one that puts a token before every text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    if request.param == "bytes":
        return tokenizer
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    from tokenizers import decoders

    trained.decoder = decoders.ByteLevel()
    texts = [ALPACA.format(instruction=row["instruction"]) + row["output"] for row in ROWS] * 3
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    trained.train_from_iterator(texts, trainer)
    if request.param == "bos":
        trained.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=trained, bos_token="<s>", eos_token="</s>")


def test_spans_hold_the_responses_exactly(tmp_path: Path, any_tokenizer, local_store: Store) -> None:
    dataset = pack(tmp_path, any_tokenizer, local_store, ROWS, max_length=600)
    sequences = TokenSequences(dataset)
    assert (dataset.num_sequences, dataset.num_documents, dataset.sequence_length) == (3, 3, 600)
    adds_bos = any_tokenizer("a")["input_ids"][0] == any_tokenizer.bos_token_id
    for index, row in enumerate(ROWS):
        start, end = sequences.span(index)
        tokens = sequences[index]
        assert any_tokenizer.decode(tokens[start : end - 1]) == row["output"]
        assert tokens[end - 1] == any_tokenizer.eos_token_id
        template = ALPACA_WITH_INPUT if row["input"] else ALPACA
        assert any_tokenizer.decode(tokens[adds_bos:start]) == template.format(**row)
        assert adds_bos == (tokens[0] == any_tokenizer.bos_token_id)
        assert not tokens[end:].any()
    assert np.load(next(iter(Path(dataset.url).rglob("spans-*.npy")))).dtype == np.int32


def test_the_chat_template_ends_a_response_once(tmp_path: Path, any_tokenizer, local_store: Store) -> None:
    any_tokenizer.chat_template = CHAT
    dataset = pack(tmp_path, any_tokenizer, local_store, ROWS, template="chat", max_length=600)
    sequences = TokenSequences(dataset)
    eos = any_tokenizer.eos_token
    for index, (row, content) in enumerate(
        zip(ROWS, ("Name a colour.", "Add the numbers.\n\n1, 2", "Translate {this}."), strict=True)
    ):
        start, end = sequences.span(index)
        tokens = sequences[index]
        assert any_tokenizer.decode(tokens[start:end]) == row["output"] + eos
        assert tokens[start:end].tolist().count(any_tokenizer.eos_token_id) == 1
        assert any_tokenizer.decode(tokens[:start]) == f"<user>{content}{eos}\n<assistant>"


def test_a_chat_template_of_a_real_model(tmp_path: Path) -> None:
    """ChatML, as SmolLM2 and Qwen have it, with a system prompt that the template adds."""
    tokenizer = AutoTokenizer.from_pretrained(Path("~/.cache/shortened_llm/assets/smollm2-135m-instruct").expanduser())
    encoder = PairEncoder(instruction_pairs(tmp_path, ROWS, template="chat"), tokenizer, 256)
    encoded = encoder.encode(Pair(instruction="Hi.", input="", response="Hello there."))
    assert encoded is not None
    assert tokenizer.decode(encoded.tokens[encoded.response_start :]) == "Hello there.<|im_end|>"
    assert tokenizer.decode(encoded.tokens[: encoded.response_start]).endswith("Hi.<|im_end|>\n<|im_start|>assistant\n")


def test_long_pairs_are_cut_and_those_without_room_are_counted(
    tmp_path: Path,
    tokenizer,
    local_store: Store,
    logged: pytest.LogCaptureFixture,
) -> None:
    length = len(ALPACA.format(instruction="x" * 10)) + 5
    rows = [
        {"instruction": "x" * 10, "output": "y" * 50},  # cut
        {"instruction": "x" * 15, "output": "y"},  # the prompt fills it
        {"instruction": "x" * 14, "output": "y"},  # room for one token, and none for the end
        {"instruction": "x" * 13, "output": "y"},  # fits to the token
    ]
    dataset = pack(tmp_path, tokenizer, local_store, rows, max_length=length)
    sequences = TokenSequences(dataset)
    assert [sequences.span(index) for index in range(3)] == [
        (length - 5, length),
        (length - 1, length),
        (length - 2, length),
    ]
    assert [sequences[index][-1] == tokenizer.eos_token_id for index in range(3)] == [False, False, True]
    assert "1 pairs are left out" in logged.text
    with pytest.raises(BadInputError, match=r"retraining\.instructions.*max_length = 32"):
        pack(tmp_path, tokenizer, local_store, rows, max_length=32)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"instruction": "a", "answer": "b"}, ["response_field", "no column 'output'", "instruction, answer"]),
        ({"prompt": "a", "output": "b"}, ["instruction_field", "no column 'instruction'", "prompt, output"]),
        ({"instruction": "a", "output": ""}, ["row 1", "output ''"]),
        ({"instruction": "a", "output": None}, ["row 1", "output None"]),
        ({"instruction": " ", "output": "b"}, ["row 1", "instruction ' '"]),
    ],
)
def test_bad_pairs_are_named(tmp_path: Path, tokenizer, local_store: Store, row: dict, words: list[str]) -> None:
    first = row if "column" in words[1] else ROWS[0]
    with pytest.raises(BadInputError) as caught:
        pack(tmp_path, tokenizer, local_store, [first, row])
    for word in ("retraining.instructions", *words):
        assert word in str(caught.value)


def test_no_pairs_are_refused(tmp_path: Path, tokenizer, local_store: Store) -> None:
    with pytest.raises(BadInputError, match=r"retraining\.instructions.*holds no pair"):
        pack(tmp_path, tokenizer, local_store, [])


def test_a_tokenizer_without_a_chat_template_is_refused(tmp_path: Path, tokenizer, local_store: Store) -> None:
    tokenizer.chat_template = None
    with pytest.raises(BadInputError, match=r"retraining\.instructions\.template: is 'chat'.* use 'alpaca'"):
        pack(tmp_path, tokenizer, local_store, ROWS, template="chat")


def test_a_template_that_hides_the_response_is_refused(tmp_path: Path, tokenizer, local_store: Store) -> None:
    tokenizer.chat_template = "{{ messages | length }}{{ messages[-1].content }}"
    with pytest.raises(BadInputError, match=r"template: is 'chat'.*does not begin with its prompt"):
        pack(tmp_path, tokenizer, local_store, ROWS, template="chat")
