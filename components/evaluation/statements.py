"""Which statements a written report makes, by words: the fact check behind `hallucinated` and `omitted`.

Deliberately simple, so that everyone can see what it can miss. A statement is made where its name of
`components.records.statements` stands in a clause with no negation before it. Doubt ("possible") counts as stated.
Other words for the same finding are not known, so a report in free wording is found to state less than it does.
"""

from __future__ import annotations

import re

from components.instruct.report import parse_statements

_CLAUSE = re.compile(r"[.;:\n]+|\b(?:but|however|although|though|otherwise|except)\b", re.IGNORECASE)
_NEGATION = re.compile(
    r"\b(?:no|not|nor|without|neither|negative for|free of|absence of|rather than|ruled? out|excluded?)\b",
    re.IGNORECASE,
)


def stated_in(text: str) -> set[str]:
    """Codes of the statements that `text` makes of the ECG; what it denies is left out."""
    affirmed = [
        clause[: found.start()] if (found := _NEGATION.search(clause)) else clause for clause in _CLAUSE.split(text)
    ]
    return parse_statements(". ".join(affirmed))
