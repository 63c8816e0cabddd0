"""What a chest report says is there, by words: the fact check behind an impression's score.

Deliberately simple, so that everyone can see what it can miss. A fact is affirmed where one of its words stands in a
sentence with no negation before it. Doubt ("possible", "may represent") counts as affirmed; a negation reaches to the
end of its sentence or to "but", "however", "otherwise", … It knows the facts of `FACTS` and no others: it never says
that a report is right, only which of these facts two texts share.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that can be seen. `terms` are the index terms (Open-i's Problems) that mean it."""

    terms: frozenset[str]
    pattern: re.Pattern[str]


def _fact(terms: str, pattern: str) -> Fact:
    return Fact(frozenset(terms.split("; ")), re.compile(rf"\b(?:{pattern})", re.IGNORECASE))


# Index terms that only say where something is (Lung, Spine, Aorta) or how good the picture is are left out.
FACTS: dict[str, Fact] = {
    "atelectasis": _fact("Pulmonary Atelectasis; Volume Loss", r"atelecta|volume loss"),
    "cardiomegaly": _fact(
        "Cardiomegaly",
        r"cardiomegaly|(?:cardiac|heart|cardiomediastinal)[\w ]{0,40}\benlarge|enlarge\w*[\w ]{0,20}\b(?:heart|cardi)",
    ),
    "catheter or tube": _fact("Catheters, Indwelling; Tube, Inserted", r"catheters?\b|picc|port-?a-?cath|tubes?\b"),
    "calcification or granuloma": _fact(
        "Calcinosis; Calcified Granuloma; Granuloma; Granulomatous Disease", r"calcif|granulom"
    ),
    "congestion or edema": _fact(
        "Pulmonary Congestion; Pulmonary Edema; Heart Failure", r"congest|o?edema|heart failure|chf\b"
    ),
    "degenerative change": _fact(
        "Osteophyte; Spondylosis; Arthritis", r"degenerat|osteophyt|spondylos|arthrit|arthros"
    ),
    "device": _fact("Implanted Medical Device; Medical Device", r"pacemaker|pacer|defibrillator|icd\b|device"),
    "effusion": _fact("Pleural Effusion; Hydropneumothorax", r"(?:pleural |bilateral |small )*effusion"),
    "elevated diaphragm": _fact("Diaphragmatic Eventration", r"eventration|elevat\w+[\w ]{0,20}\b(?:hemi)?diaphragm"),
    "emphysema": _fact(
        "Emphysema; Pulmonary Emphysema; Bullous Emphysema; Pulmonary Disease, Chronic Obstructive",
        r"emphysem|copd\b|chronic obstructive",
    ),
    "fibrosis": _fact("Pulmonary Fibrosis; Lung Diseases, Interstitial", r"fibro|interstitial lung"),
    "fracture": _fact("Fractures, Bone", r"fractur"),
    "hernia": _fact("Hernia, Hiatal; Hernia, Diaphragmatic", r"hernia"),
    "mass": _fact("Mass", r"mass(?:es)?\b"),
    "nodule": _fact("Nodule", r"nodul"),
    "opacity": _fact(
        "Opacity; Airspace Disease; Infiltrate; Consolidation; Pneumonia; Density",
        r"opaci|air ?space|infiltrat|consolidat|(?:broncho)?pneumonia|densit",
    ),
    "pneumothorax": _fact("Pneumothorax; Hydropneumothorax; Hemopneumothorax", r"(?:hydro)?pneumothora"),
    "scar": _fact("Cicatrix", r"scar(?:s|ring|red)?\b"),
    "scoliosis or kyphosis": _fact("Scoliosis; Kyphosis", r"scolio|kypho|dextroscolio|levoscolio"),
    "thickening": _fact("Thickening", r"thicken"),
    "vessel sclerosis": _fact("Atherosclerosis", r"atheroscl|arterioscl|atheromat"),
}

_SENTENCE = re.compile(r"[.;:\n]+|\b(?:but|however|although|though|otherwise|except)\b", re.IGNORECASE)
_NEGATION = re.compile(
    r"\b(?:no|not|nor|without|negative for|free of|absence of|clear of|rather than|resolved|resolution of)\b",
    re.IGNORECASE,
)
_NORMAL = re.compile(
    r"\b(?:no|not|without|negative)\b[\w ,/-]*"
    r"\b(?:acute|active|abnormalit|disease|finding|process|change|cardiopulm|significant)"
    r"|\bnormal\b|\bclear\b|\bunremarkable\b"
    r"|\bnegative (?:chest|exam|study|radiograph)|\bstable (?:chest|exam|appearance)",
    re.IGNORECASE,
)


def affirmed(text: str) -> frozenset[str]:
    """The facts that `text` says are there."""
    said = set()
    for sentence in _SENTENCE.split(text):
        negation = _NEGATION.search(sentence)
        until = negation.start() if negation else len(sentence)
        said |= {
            name for name, fact in FACTS.items() if any(m.start() < until for m in fact.pattern.finditer(sentence))
        }
    return frozenset(said)


def says_normal(text: str) -> bool:
    """Whether `text` calls the picture normal or without acute disease, and affirms no fact."""
    return bool(_NORMAL.search(text)) and not affirmed(text)


def facts_of(problems: Iterable[str]) -> frozenset[str]:
    """The facts that index terms mean."""
    terms = set(problems)
    return frozenset(name for name, fact in FACTS.items() if fact.terms & terms)
