"""Checks a built site: links and images exist, images have texts, no example warns, the search knows all operators.

python docs/ext/check_site.py docs/_build/html
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The links of a page, its anchors, its images without alternative text, and stray output of examples."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.silent: list[str] = []
        self.stray: list[str] = re.findall(r"\w+Warning: |object at 0x", text)
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect the attributes of one element."""
        given = dict(attrs)
        self.anchors |= {name for key in ("id", "name") if (name := given.get(key))}
        self.links += [link for key in ("href", "src") if (link := given.get(key))]
        source = given.get("src") or "a picture"
        if tag == "img" and not (given.get("alt") or "").strip():
            self.silent.append(source)


def wrong(site: Path) -> list[str]:
    """The mistakes found in a site, one message each."""
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        name = path.relative_to(site.resolve())
        found += [f"{name}: {picture} has no alternative text" for picture in page.silent]
        found += [f"{name}: an example prints '{text}'" for text in page.stray]
        for link in dict.fromkeys(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if parts.scheme not in ("https", "http", "mailto", "data"):
                    found.append(f"{name}: {link}")
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            anchor = unquote(parts.fragment)
            if not target.exists():
                found.append(f"{name}: {link} leads nowhere")
            elif anchor and target in pages and anchor not in pages[target].anchors:
                found.append(f"{name}: {link} names a place that is not there")
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    operators = [path.stem for path in (site / "operators").glob("*.html")]
    found += [f"the search does not know {name}" for name in operators if f'"operators/{name}"' not in index]
    return found


if __name__ == "__main__":
    mistakes = wrong(Path(sys.argv[1]))
    if mistakes:
        sys.exit("\n".join([*mistakes[:40], f"error: {len(mistakes)} mistakes in the site"]))
    print("links, pictures and search of the site hold")
