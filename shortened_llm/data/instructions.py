"""Instruction data: pairs of a prompt and a response, as tokens with the span of the response."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from shortened_llm.config import InstructionsConfig
from shortened_llm.data.rows import Rows
from shortened_llm.errors import BadInputError

# The prompts of Stanford Alpaca (github.com/tatsu-lab/stanford_alpaca, README, "Data Release"): a fixed format, which
# models trained on it expect to the letter.
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One row."""

    instruction: str
    input: str
    """Empty where the instruction needs none."""
    response: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPair:
    """A pair as tokens; the response is `tokens[response_start:]` and ends with an end-of-text token, if not cut."""

    tokens: list[int]
    response_start: int


@dataclass(frozen=True, kw_only=True)
class InstructionPairs:
    """The pairs of one source."""

    source: InstructionsConfig
    files: tuple[str, ...]
    """Absolute paths or URLs; empty for a hub data set."""
    commit: str | None
    """Of a hub data set."""
    field_path: str
    """Where the source stands in the config, for messages."""

    @classmethod
    def find(cls, source: InstructionsConfig, field_path: str) -> "InstructionPairs":
        """The pairs behind a source; raises `BadInputError` where there is no such file or data set."""
        rows = Rows.find(source, field_path)
        return cls(source=source, files=rows.files, commit=rows.commit, field_path=field_path)

    @cached_property
    def identity(self) -> dict[str, object]:
        """What determines the prompts and responses."""
        source = self.source
        return self._rows.identity | {
            "fields": [source.instruction_field, source.input_field, source.response_field],
            "template": source.template,
        }

    @property
    def num_shards(self) -> int:
        """Parts that can be read apart from one another: files."""
        return self._rows.num_shards

    def read(self, shard: int, *, first: int = 0, count: int | None = None) -> Iterator[Pair]:
        """Rows `first` to `first + count` of a shard, or all from `first` on, read as they are asked for.

        Raises:
            BadInputError: the source cannot be read, a column is missing, or a row has no instruction or response.
        """
        for index, row in enumerate(self._rows.read(shard, first=first, count=count), start=first):
            yield self._pair(row, shard, index)

    @cached_property
    def _rows(self) -> Rows:
        return Rows(source=self.source, files=self.files, commit=self.commit, field_path=self.field_path)

    def _pair(self, row: dict[str, object], shard: int, index: int) -> Pair:
        source = self.source
        texts = []
        for key in ("instruction_field", "response_field"):
            column = getattr(source, key)
            if column not in row:
                raise BadInputError(
                    f"{self.field_path}.{key}: {source.path!r} has no column {column!r}; it has {', '.join(row)}"
                )
            text = row[column]
            if not isinstance(text, str) or not text.strip():
                raise BadInputError(
                    f"{self.field_path}: row {index} of {self._rows.name_of(shard)} has {column} {text!r}; every row "
                    "needs a text there"
                )
            texts.append(text)
        context = row.get(source.input_field)
        if context is not None and not isinstance(context, str):
            raise BadInputError(
                f"{self.field_path}: row {index} of {self._rows.name_of(shard)} has {source.input_field} {context!r}, "
                "which is no text"
            )
        return Pair(instruction=texts[0], input=context or "", response=texts[1])


class PairEncoder:
    """Puts pairs into a template and encodes them."""

    def __init__(self, pairs: InstructionPairs, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        """Raises `BadInputError` where the template is the tokenizer's own and it has none."""
        if pairs.source.template == "chat" and tokenizer.chat_template is None:
            raise BadInputError(
                f"{pairs.field_path}.template: is 'chat', but the model's tokenizer has no chat template; use 'alpaca'"
            )
        self._pairs, self._tokenizer, self._max_length = pairs, tokenizer, max_length
        some = tokenizer("a")["input_ids"]
        self._leading = [some[0]] if some and some[0] == tokenizer.bos_token_id else []

    def encode(self, pair: Pair) -> EncodedPair | None:
        """Prompt and response as tokens, cut at the maximal length; None where nothing of the response is left.

        Prompt and response are encoded apart from one another, so that no token lies in both.
        """
        prompt, response = self._chat(pair) if self._pairs.source.template == "chat" else self._alpaca(pair)
        if len(prompt) >= self._max_length:
            return None
        return EncodedPair(tokens=(prompt + response)[: self._max_length], response_start=len(prompt))

    def _alpaca(self, pair: Pair) -> tuple[list[int], list[int]]:
        template = ALPACA_WITH_INPUT if pair.input.strip() else ALPACA
        prompt = template.format(instruction=pair.instruction, input=pair.input)
        return self._leading + self._ids(prompt), [*self._ids(pair.response), self._tokenizer.eos_token_id]

    def _chat(self, pair: Pair) -> tuple[list[int], list[int]]:
        content = f"{pair.instruction}\n\n{pair.input}" if pair.input.strip() else pair.instruction
        asked = [{"role": "user", "content": content}]
        answered = [*asked, {"role": "assistant", "content": pair.response}]
        prompt = self._tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        whole = self._tokenizer.apply_chat_template(answered, tokenize=False)
        if not whole.startswith(prompt):
            raise BadInputError(
                f"{self._pairs.field_path}.template: is 'chat', but in the tokenizer's chat template a conversation "
                "does not begin with its prompt, so that the response cannot be told from it; use 'alpaca'"
            )
        response = self._ids(whole[len(prompt) :])
        end = self._tokenizer.eos_token_id
        if end in response:  # what follows it, such as a line break, belongs to the next turn
            response = response[: len(response) - response[::-1].index(end)]
        else:
            response.append(end)
        return self._ids(prompt), response

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
