"""What a page asks a browser to fetch."""

from html.parser import HTMLParser


class Loads(HTMLParser):
    """Collects what the page's elements refer to, and the elements themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("iframe", "object", "embed", "video", "audio", "base")
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag == "img":
            # Written into the page: it has no other.
            assert dict(attrs)["src"].startswith("data:image/png;base64,")
            return
        self.found |= {value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")}

    @classmethod
    def of(cls, text: str) -> set[str]:
        parser = cls()
        parser.feed(text)
        return parser.found
