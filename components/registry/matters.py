"""A matter: something that people should be told once, as a title, a few lines and a link."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

LINES, WIDTH, TITLE = 10, 300, 120  # what a message may have: lines, and characters in one

Severity = Literal["info", "warning", "failure"]
Kind = Literal[
    "run-failed", "run-crashed", "run-late", "gate-refused", "approval-waiting", "promotion-refused", "change-refused",
    "delivery-refused", "rolled-back", "not-reproduced", "ledger-broken", "drift", "budget", "test",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Matter:
    """Something to be told once. `key` names it within its kind: the same key is the same matter."""

    kind: Kind
    key: str
    title: str  # one line
    body: str  # what happened, to what, why, and what to do next
    link: str | None
    severity: Severity

    @property
    def text(self) -> str:
        """The message below the title: at most `LINES` lines, the link last."""
        lines = [cut(line, WIDTH) for line in self.body.splitlines() if line.strip()]
        last = [self.link] if self.link else []
        return plain("\n".join([*lines[: LINES - len(last)], *last]))

    @property
    def heading(self) -> str:
        return plain(cut(self.title, TITLE))


def cut(text: str, most: int) -> str:
    """`text` in one line of at most `most` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"


def plain(text: str) -> str:
    """`text` in which nothing is a mention, a channel or a link with another name, where a chat reads markup."""
    return re.sub(r"<(?=[!@#a-zA-Z/])", "‹", text)
