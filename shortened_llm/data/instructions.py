"""Instruction data: pairs of a prompt and a response, as tokens with the span of the response."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from shortened_llm.config import InstructionsConfig
from shortened_llm.data.readers import BadRow, Row, no_column
from shortened_llm.data.rows import Rows, Tally
from shortened_llm.errors import BadInputError, brief

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
    """Commit of a hub data set."""
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

    def pairs(self) -> Iterator[Pair]:
        """Every pair, read as they are asked for.

        Raises:
            BadInputError: the source cannot be read, or more of its rows than are allowed are no pairs.
        """
        counted = self.tally()
        for shard in range(self.num_shards):
            for index, pair in enumerate(self.read(shard)):
                counted.take(pair, shard, index)
                if isinstance(pair, Pair):
                    yield pair
        counted.finish()

    def read(self, shard: int, *, first: int = 0, count: int | None = None) -> Iterator[Pair | BadRow]:
        """Rows `first` to `first + count` of a shard, or all from `first` on, read as they are asked for.

        Raises:
            BadInputError: the source cannot be read.
        """
        source = self.source
        columns = (source.input_field, source.response_field, source.instruction_field)
        for row in self._rows.read(shard, columns, first=first, count=count):
            yield self._pair(row)

    def tally(self) -> Tally:
        """A count of the source's rows."""
        return Tally(self._rows)

    @cached_property
    def _rows(self) -> Rows:
        return Rows(source=self.source, files=self.files, commit=self.commit, field_path=self.field_path)

    def _pair(self, row: Row) -> Pair | BadRow:
        if isinstance(row, BadRow):
            return row
        source = self.source
        texts = []
        for key in ("instruction_field", "response_field"):
            column = getattr(source, key)
            if column not in row:
                return no_column(column, f"{self.field_path}.{key}", row)
            text = row[column]
            if not isinstance(text, str) or not text.strip():
                return BadRow(f"has {column} {brief(repr(text))}, which is no text")
            texts.append(text)
        context = row.get(source.input_field)
        if context is not None and not isinstance(context, str):
            return BadRow(f"has {source.input_field} {brief(repr(context))}, which is no text")
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
        try:
            prompt = self._tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
            whole = self._tokenizer.apply_chat_template(answered, tokenize=False)
        except Exception as error:  # a template may raise what it likes
            raise self._bad_template(f"it fails ({brief(error)})") from None
        if not whole.startswith(prompt):
            raise self._bad_template(
                "in it a conversation does not begin with its prompt, so that the response cannot be told from it"
            )
        if pair.response.strip() not in whole[len(prompt) :]:
            raise self._bad_template(f"it loses the response, such as {brief(repr(pair.response))}")
        response = self._ids(whole[len(prompt) :])
        end = self._tokenizer.eos_token_id
        if end in response:  # what follows it, such as a line break, belongs to the next turn
            response = response[: len(response) - response[::-1].index(end)]
        else:
            response.append(end)
        return self._ids(prompt), response

    def _bad_template(self, why: str) -> BadInputError:
        return BadInputError(
            f"{self._pairs.field_path}.template: is 'chat', but the tokenizer's chat template cannot be used: {why}; "
            "use 'alpaca', or mend the template"
        )

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
