"""Instruction data: pairs of a prompt and a response, as tokens with the span of the response."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from shortened_llm.config import InstructionsConfig
from shortened_llm.data.readers import BadRow, Row, as_text, no_column
from shortened_llm.data.rows import Rows
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
class InstructionPairs(Rows):
    """The pairs of one source."""

    source: InstructionsConfig

    @cached_property
    def identity(self) -> dict[str, object]:
        """What determines the prompts and responses."""
        source = self.source
        return self.content | {
            "fields": [source.instruction_field, source.input_field, source.response_field],
            "template": source.template,
        }

    def read(self, shard: int, *, first: int = 0, count: int | None = None) -> Iterator[Pair | BadRow]:
        """Read pairs, all of which are wanted; see `Rows.read`."""
        source = self.source
        columns = (source.input_field, source.response_field, source.instruction_field)
        return map(self._pair, self._values(shard, columns, first, count))

    def _pair(self, row: Row) -> Pair | BadRow:
        if isinstance(row, BadRow):
            return row
        texts: list[str] = []
        for key in ("instruction_field", "response_field", "input_field"):
            column, is_needed = getattr(self.source, key), key != "input_field"
            if is_needed and column not in row:
                return no_column(column, f"{self.field_path}.{key}", row)
            value = row.get(column)
            value = "" if value is None and not is_needed else value
            if not isinstance(value, str) or (is_needed and not value.strip()):
                return BadRow(f"has {column} {brief(repr(value))}, which is no text")
            text = as_text(value, column)
            if isinstance(text, BadRow):
                return text
            texts.append(text)
        instruction, response, context = texts
        return Pair(instruction=instruction, input=context, response=response)


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

        Prompt and response are encoded apart from one another, so that no token lies in both; the response as it
        follows the prompt, since some tokenizers put a space in front of every text (Llama 2).
        """
        prompt, response = self._chat(pair) if self._pairs.source.template == "chat" else self._alpaca(pair)
        if len(prompt) >= self._max_length:
            return None
        return EncodedPair(tokens=(prompt + response)[: self._max_length], response_start=len(prompt))

    def _alpaca(self, pair: Pair) -> tuple[list[int], list[int]]:
        template = ALPACA_WITH_INPUT if pair.input.strip() else ALPACA
        prompt = template.format(instruction=pair.instruction, input=pair.input)
        return self._leading + self._ids(prompt), [*self._behind(prompt, pair.response), self._tokenizer.eos_token_id]

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
        response = self._behind(prompt, whole[len(prompt) :])
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

    def _behind(self, prompt: str, text: str) -> list[int]:
        """Token ids of `text` where it follows the prompt, or by itself where its first token would reach into that."""
        last, both = self._ids(prompt[-1:]), self._ids(prompt[-1:] + text)
        return both[len(last) :] if both[: len(last)] == last else self._ids(text)

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
