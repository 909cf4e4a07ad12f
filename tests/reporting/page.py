"""Reads a page back as a reader sees it."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """Tags with their attributes, visible text, and the cells of each table row."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: dict[str, list[str]] = {}
        self.text = ""
        self.scripts: list[str] = []
        self._row: list[str] | None = None
        self._in_cell = False
        self._in_script = False
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        self._in_script = tag == "script"
        if tag == "tr":
            self._row = self.rows.setdefault(dict(attributes).get("id") or f"row {len(self.rows)}", [])
        if tag in ("td", "th") and self._row is not None:
            self._row.append("")
            self._in_cell = True

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts.append(data)
            return
        self.text += data
        if self._row and self._in_cell:
            self._row[-1] += data

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False
        if tag in ("td", "th"):
            self._in_cell = False

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)
