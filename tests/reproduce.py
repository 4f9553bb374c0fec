"""Two builds of the book say the same: ``python tests/reproduce.py FOLDER FOLDER`` lists what differs.

Times may differ, which are measured anew, and marks that tools draw at random or that depend on what was
built before. Exit code 1 where anything else does.
"""

import re
import sys
from pathlib import Path

MAY_DIFFER = {
    r"'ms': [0-9.e-]+": "'ms': ",  # times
    r"\bT_[0-9a-f]{5}": "T_",  # ids of pandas' styled tables
    r"\?v=[0-9a-f]+": "",  # Sphinx's digest of a file that the first build has yet to write
}
PAGES = (".html", ".js", ".css", ".svg", ".csv")


def text_of(path):
    """Return the lines of a page that are not empty, without what may differ."""
    text = path.read_text(encoding="utf-8")
    for pattern, instead in MAY_DIFFER.items():
        text = re.sub(pattern, instead, text)
    return [line for line in text.splitlines() if line.strip()]


def differences(one, other):
    """Return a line for each page that differs or that only one of the two builds has.

    Raises:
      ValueError: if a folder holds no page.
    """
    books = [
        {str(path.relative_to(folder)): path for path in Path(folder).rglob("*") if path.suffix in PAGES}
        for folder in (one, other)
    ]
    for folder, book in zip((one, other), books, strict=True):
        if not book:
            raise ValueError(f"{folder} holds no page: it must be a folder of built HTML")
    found = [f"{name} is in one build only" for name in sorted(set(books[0]) ^ set(books[1]))]
    for name in sorted(set(books[0]) & set(books[1]) - {"searchindex.js"}):
        a, b = (text_of(book[name]) for book in books)
        if a != b:
            line = next((pair for pair in zip(a, b, strict=False) if pair[0] != pair[1]), ("", ""))
            found.append(f"{name}: {len(a)} and {len(b)} lines, first {line[0][:100]!r}, {line[1][:100]!r}")
    return found


if __name__ == "__main__":
    found = differences(*sys.argv[1:3])
    print(*found or ["The two builds say the same."], sep="\n")
    sys.exit(bool(found))
