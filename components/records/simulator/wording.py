"""A short English report from the statements, worded as readers word theirs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

PHRASES: dict[str, tuple[str, ...]] = {
    "SR": ("sinus rhythm", "regular sinus rhythm", "normal sinus rhythm"),
    "SBRAD": ("sinus bradycardia", "sinus rhythm, bradycardic"),
    "STACH": ("sinus tachycardia", "sinus rhythm, tachycardic"),
    "SARRH": ("sinus arrhythmia", "sinus rhythm with marked respiratory arrhythmia"),
    "AFIB": (
        "atrial fibrillation",
        "atrial fibrillation, irregular ventricular response",
        "absolute arrhythmia in atrial fibrillation",
    ),
    "AFLT": ("atrial flutter", "atrial flutter with variable block", "typical flutter waves"),
    "SVTAC": ("supraventricular tachycardia", "narrow complex tachycardia"),
    "PSVT": ("paroxysmal supraventricular tachycardia",),
    "PACE": ("ventricular paced rhythm", "pacemaker rhythm", "artificial pacemaker, regular capture"),
    "BIGU": ("bigeminy", "ventricular bigeminy"),
    "TRIGU": ("trigeminy", "ventricular trigeminy"),
    "NORM": ("normal ecg", "ecg within normal limits", "no abnormality", "otherwise normal ecg"),
    "1AVB": ("first degree av block", "av block grade i", "prolonged pr interval, av block i"),
    "2AVB": ("second degree av block", "av block grade ii"),
    "3AVB": ("complete av block", "third degree av block with escape rhythm"),
    "LPR": ("prolonged pr interval",),
    "CLBBB": ("left bundle branch block", "complete left bundle branch block"),
    "CRBBB": ("right bundle branch block", "complete right bundle branch block"),
    "ILBBB": ("incomplete left bundle branch block",),
    "IRBBB": ("incomplete right bundle branch block", "rsr' in v1, incomplete rbbb"),
    "LAFB": ("left anterior fascicular block", "left anterior hemiblock"),
    "LPFB": ("left posterior fascicular block", "left posterior hemiblock"),
    "IVCD": ("non-specific intraventricular conduction delay", "intraventricular block"),
    "WPW": ("ventricular preexcitation, wpw pattern", "short pr with delta wave, wpw syndrome"),
    "LVH": ("left ventricular hypertrophy", "signs of left ventricular hypertrophy"),
    "RVH": ("right ventricular hypertrophy", "signs of right ventricular load"),
    "VCLVH": ("voltage criteria for lvh", "voltages are high in chest leads"),
    "LAO/LAE": ("left atrial enlargement", "p-sinistroatriale"),
    "RAO/RAE": ("right atrial enlargement", "p-dextroatriale"),
    "IMI": ("inferior infarction", "inferior myocardial infarction"),
    "AMI": ("anterior infarction", "anterior myocardial infarction"),
    "ASMI": ("anteroseptal infarction", "anteroseptal myocardial infarction"),
    "ALMI": ("anterolateral infarction", "anterolateral myocardial infarction"),
    "LMI": ("lateral infarction", "lateral myocardial infarction"),
    "ILMI": ("inferolateral infarction", "inferolateral myocardial infarction"),
    "PMI": ("posterior infarction", "posterior myocardial infarction"),
    "IPMI": ("inferoposterior infarction",),
    "IPLMI": ("inferoposterolateral infarction",),
    "INJAS": ("anteroseptal subendocardial injury",),
    "INJAL": ("anterolateral subendocardial injury",),
    "INJIN": ("inferior subendocardial injury",),
    "ISC_": ("ischemic st-t changes", "st & t abnormal, ischemia or strain"),
    "ISCAL": ("anterolateral ischemia", "st-t changes suggesting anterolateral ischemia"),
    "ISCIN": ("inferior ischemia", "st-t changes suggesting inferior ischemia"),
    "ISCAN": ("anterior ischemia",),
    "ISCAS": ("anteroseptal ischemia",),
    "ISCLA": ("lateral ischemia", "high lateral ischemia"),
    "ISCIL": ("inferolateral ischemia",),
    "NDT": ("non-diagnostic t abnormalities", "unspecific t wave abnormality"),
    "NST_": ("non-specific st changes", "unspecific st abnormality"),
    "DIG": ("digitalis effect", "st sagging suggests digitalis effect"),
    "LNGQT": ("prolonged qt interval", "long qt"),
    "EL": ("suggests electrolyte disturbance", "electrolyte disturbance or drug effect"),
    "ANEUR": ("persistent st elevation, consider ventricular aneurysm",),
    "STD_": ("st depression",),
    "STE_": ("st elevation",),
    "INVT": ("inverted t waves",),
    "LOWT": ("low t waves", "t flat"),
    "NT_": ("t wave changes",),
    "TAB_": ("t wave abnormality",),
    "ABQRS": ("abnormal qrs",),
    "QWAVE": ("pathological q waves", "q waves present"),
    "LVOLT": ("low voltage", "peripheral low voltage"),
    "HVOLT": ("high qrs voltage",),
    "PVC": ("ventricular premature complex(es)", "ventricular extrasystoles"),
    "PAC": ("atrial premature complex(es)", "supraventricular extrasystoles"),
    "PRC(S)": ("premature complex(es)",),
}
RHYTHMS = ("SR", "SBRAD", "STACH", "SARRH", "AFIB", "AFLT", "SVTAC", "PSVT", "PACE", "BIGU", "TRIGU")


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def axis_phrase(axis_deg: float) -> str:
    if axis_deg < -30:
        return "left axis deviation"
    if axis_deg > 100:
        return "right axis deviation"
    return "leftward axis" if axis_deg < 20 else "normal axis"


def report(rng: np.random.Generator, labels: Mapping[str, float], axis_deg: float) -> str:
    """Rhythm, sometimes the axis, then findings; doubtful ones (likelihood under 100) are worded so."""
    blocked = any(code in labels for code in ("1AVB", "2AVB", "3AVB"))
    parts = [_pick(rng, PHRASES[code][: 1 if blocked else None]) for code in RHYTHMS if code in labels]
    if rng.random() < 0.5:
        parts.append(axis_phrase(axis_deg))
    hedges = ("probable {}", "possible {}", "{}, cannot be excluded")
    for code, likelihood in labels.items():
        if code in RHYTHMS:
            continue
        words = _pick(rng, PHRASES[code])
        parts.append(words if likelihood >= 100 else _pick(rng, hedges).format(words))
    return ". ".join(parts) + "."
