# SPDX-License-Identifier: MIT
"""Pages of the documentation, and the code blocks and commands in them."""

import re
import shlex

from support.paths import DOCS, ROOT

PAGES = {"README.md": ROOT / "README.md"}
PAGES |= {path.relative_to(DOCS).as_posix(): path for path in sorted(DOCS.rglob("*.md"))}
_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?<=\n\n)(?:    \S.*\n)+")


def read(page):
    return PAGES[page].read_text(encoding="utf-8")


def blocks(page, language):
    """The code blocks of a page in one language."""
    return [text for name, text in _FENCED.findall(read(page)) if name == language]


def languages(page):
    """The languages of the code blocks of a page; "" for one without."""
    return {name for name, _ in _FENCED.findall(read(page))}


def python_blocks():
    """(page, number of the block, its text) of all Python blocks."""
    return [(page, number, text) for page in PAGES for number, text in enumerate(blocks(page, "python"))]


def commands(page):
    """The words of each command of a page: in blocks of a shell's language, and in indented blocks."""
    texts = [*blocks(page, "bash"), *blocks(page, "powershell"), *_INDENTED.findall(_FENCED.sub("", read(page)))]
    return [words for text in texts for words in split_commands(text)]


def split_commands(text):
    """The words of each command in a shell's text, without comments."""
    found, pending = [], ""
    for line in text.splitlines():
        pending += line
        if pending.endswith("\\"):
            pending = pending[:-1]
            continue
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:  # a quotation goes on in the next line
            pending += "\n"
            continue
        pending = ""
        if words:
            found.append(words)
    assert not pending, f"{pending!r} does not end"
    return found
