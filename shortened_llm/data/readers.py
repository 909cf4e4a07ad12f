"""Rows of a file, one format a function: only the columns that are asked for, and a row that cannot be read costs no
other."""

import codecs
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

from shortened_llm.errors import brief
from shortened_llm.storage.urls import open_stream

Values = dict[str, object]
"""By column: those that are asked for, as far as a row has them, and others where they cost nothing."""
PARQUET_ROWS = 1024
WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used."""

    reason: str


Row = Values | BadRow


def no_column(column: str, field: str, row: Values) -> BadRow:
    """A row without a column, which a field of the config names."""
    return BadRow(f"has no column {column!r} ({field}); it has {brief(', '.join(map(str, row)))}")


def as_text(value: str | bytes, column: str) -> str | BadRow:
    """The text, where it is one that a tokenizer can read."""
    try:
        text = value.decode() if isinstance(value, bytes) else value
        text.encode()
    except UnicodeError as error:
        return BadRow(f"has a {column} that is no text ({brief(error)})")
    return text


def json_rows(url: str, columns: Sequence[str], first: int) -> Iterator[Row]:
    """Objects, one in each line, or in one array; blank lines are no rows."""
    with open_stream(url) as stream:
        start = stream.read(4)
        if start.startswith(WIDE_MARKS):
            raise ValueError("it is UTF-16; save it as UTF-8")
        lines = chain([start.removeprefix(codecs.BOM_UTF8) + stream.readline()], stream)
        opening = next((line for line in lines if line.strip()), b"")
        if opening.lstrip().startswith(b"["):
            array = json.loads(b"".join(chain([opening], lines)))
            yield from (_row(value) for value in array[first:])
            return
        filled = (line for line in chain([opening], lines) if line.strip())
        for line in islice(filled, first, None):
            yield _parsed(line)


def _parsed(line: bytes) -> Row:
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return BadRow(f"is not UTF-8 ({brief(error)})")
    except (ValueError, RecursionError) as error:
        return BadRow(f"is not JSON ({brief(error)})")
    return _row(value)


def _row(value: object) -> Row:
    return value if isinstance(value, dict) else BadRow(f"is no object with columns, but {brief(value)!r}")


def parquet_rows(url: str, columns: Sequence[str], first: int) -> Iterator[Row]:
    """Rows of a Parquet file; groups of rows before `first` are not read."""
    import pyarrow.parquet

    with open_stream(url) as stream:
        file = pyarrow.parquet.ParquetFile(stream)
        names = file.schema_arrow.names
        asked = [column for column in columns if column in names] or names  # all, to tell what there is
        groups, left = list(range(file.num_row_groups)), first
        while groups and file.metadata.row_group(groups[0]).num_rows <= left:
            left -= file.metadata.row_group(groups.pop(0)).num_rows
        batches = file.iter_batches(batch_size=PARQUET_ROWS, row_groups=groups, columns=asked)
        yield from islice((row for batch in batches for row in batch.to_pylist()), left, None)


def text_rows(url: str, columns: Sequence[str], first: int) -> Iterator[Row]:
    """Paragraphs of a text file, between blank lines, as the last of the columns."""
    with open_stream(url) as stream:
        paragraphs = _paragraphs(stream)
        for paragraph in islice(paragraphs, first, None):
            yield {columns[-1]: paragraph}


def _paragraphs(lines: Iterator[bytes]) -> Iterator[str]:
    paragraph: list[str] = []
    for number, line in enumerate(lines):
        text = line.decode("utf-8-sig" if number == 0 else "utf-8").rstrip("\r\n")
        if text.strip():
            paragraph.append(text)
        elif paragraph:
            yield "\n".join(paragraph)
            paragraph = []
    if paragraph:
        yield "\n".join(paragraph)


READERS: dict[str, Callable[[str, Sequence[str], int], Iterator[Row]]] = {
    ".jsonl": json_rows,
    ".ndjson": json_rows,
    ".json": json_rows,
    ".parquet": parquet_rows,
    ".txt": text_rows,
}
"""By the ending of a file's name. A reader is called with the file's path or URL, the columns that are asked for, and
the first row that is wanted."""
