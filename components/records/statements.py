"""The 71 SCP-ECG statements of PTB-XL: the vocabulary of every label, real or simulated.

Codes, classes and flags are those of `scp_statements.csv` of PTB-XL (Wagner et al., "PTB-XL, a large publicly
available electrocardiography dataset", Scientific Data 7:154, 2020, doi 10.1038/s41597-020-0495-6; CC BY
4.0). The descriptions are rewritten as noun phrases that read well in a sentence: "The ECG shows
{description}." 44 statements are diagnostic, 19 describe form, 12 rhythm; 4 are both diagnostic and form.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Superclass = Literal["NORM", "MI", "STTC", "CD", "HYP"]

SUPERCLASSES: tuple[Superclass, ...] = ("NORM", "MI", "STTC", "CD", "HYP")

SUPERCLASS_DESCRIPTIONS: dict[Superclass, str] = {
    "NORM": "a normal ECG",
    "MI": "a myocardial infarction",
    "STTC": "ST-segment or T-wave changes",
    "CD": "a conduction disturbance",
    "HYP": "hypertrophy or atrial enlargement",
}


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement. `superclass` and `subclass` are set for diagnostic statements only."""

    code: str
    description: str
    superclass: Superclass | None
    subclass: str | None
    form: bool = False
    rhythm: bool = False

    @property
    def diagnostic(self) -> bool:
        return self.superclass is not None


_TABLE: tuple[Statement, ...] = (
    # Diagnostic and form.
    Statement("NDT", "non-diagnostic T-wave abnormalities", "STTC", "STTC", form=True),
    Statement("NST_", "non-specific ST changes", "STTC", "NST_", form=True),
    Statement("DIG", "signs of a digitalis effect", "STTC", "STTC", form=True),
    Statement("LNGQT", "a long QT interval", "STTC", "STTC", form=True),
    # Diagnostic.
    Statement("NORM", "a normal ECG", "NORM", "NORM"),
    Statement("IMI", "an inferior myocardial infarction", "MI", "IMI"),
    Statement("ASMI", "an anteroseptal myocardial infarction", "MI", "AMI"),
    Statement("LVH", "left ventricular hypertrophy", "HYP", "LVH"),
    Statement("LAFB", "a left anterior fascicular block", "CD", "LAFB/LPFB"),
    Statement("ISC_", "non-specific ischemic ST-T changes", "STTC", "ISC_"),
    Statement("IRBBB", "an incomplete right bundle branch block", "CD", "IRBBB"),
    Statement("1AVB", "a first-degree AV block", "CD", "_AVB"),
    Statement("IVCD", "a non-specific intraventricular conduction disturbance", "CD", "IVCD"),
    Statement("ISCAL", "ischemic ST-T changes in the anterolateral leads", "STTC", "ISCA"),
    Statement("CRBBB", "a complete right bundle branch block", "CD", "CRBBB"),
    Statement("CLBBB", "a complete left bundle branch block", "CD", "CLBBB"),
    Statement("ILMI", "an inferolateral myocardial infarction", "MI", "IMI"),
    Statement("LAO/LAE", "left atrial enlargement", "HYP", "LAO/LAE"),
    Statement("AMI", "an anterior myocardial infarction", "MI", "AMI"),
    Statement("ALMI", "an anterolateral myocardial infarction", "MI", "AMI"),
    Statement("ISCIN", "ischemic ST-T changes in the inferior leads", "STTC", "ISCI"),
    Statement("INJAS", "subendocardial injury in the anteroseptal leads", "MI", "AMI"),
    Statement("LMI", "a lateral myocardial infarction", "MI", "LMI"),
    Statement("ISCIL", "ischemic ST-T changes in the inferolateral leads", "STTC", "ISCI"),
    Statement("LPFB", "a left posterior fascicular block", "CD", "LAFB/LPFB"),
    Statement("ISCAS", "ischemic ST-T changes in the anteroseptal leads", "STTC", "ISCA"),
    Statement("INJAL", "subendocardial injury in the anterolateral leads", "MI", "AMI"),
    Statement("ISCLA", "ischemic ST-T changes in the lateral leads", "STTC", "ISCA"),
    Statement("RVH", "right ventricular hypertrophy", "HYP", "RVH"),
    Statement("ANEUR", "ST-T changes compatible with a ventricular aneurysm", "STTC", "STTC"),
    Statement("RAO/RAE", "right atrial enlargement", "HYP", "RAO/RAE"),
    Statement("EL", "ST-T changes compatible with an electrolyte disturbance or drug effect", "STTC", "STTC"),
    Statement("WPW", "a Wolff-Parkinson-White pattern", "CD", "WPW"),
    Statement("ILBBB", "an incomplete left bundle branch block", "CD", "ILBBB"),
    Statement("IPLMI", "an inferoposterolateral myocardial infarction", "MI", "IMI"),
    Statement("ISCAN", "ischemic ST-T changes in the anterior leads", "STTC", "ISCA"),
    Statement("IPMI", "an inferoposterior myocardial infarction", "MI", "IMI"),
    Statement("SEHYP", "septal hypertrophy", "HYP", "SEHYP"),
    Statement("INJIN", "subendocardial injury in the inferior leads", "MI", "IMI"),
    Statement("INJLA", "subendocardial injury in the lateral leads", "MI", "AMI"),
    Statement("PMI", "a posterior myocardial infarction", "MI", "PMI"),
    Statement("3AVB", "a third-degree AV block", "CD", "_AVB"),
    Statement("INJIL", "subendocardial injury in the inferolateral leads", "MI", "IMI"),
    Statement("2AVB", "a second-degree AV block", "CD", "_AVB"),
    # Form.
    Statement("ABQRS", "an abnormal QRS complex", None, None, form=True),
    Statement("PVC", "ventricular premature complexes", None, None, form=True),
    Statement("STD_", "non-specific ST depression", None, None, form=True),
    Statement("VCLVH", "voltage criteria for left ventricular hypertrophy", None, None, form=True),
    Statement("QWAVE", "pathological Q waves", None, None, form=True),
    Statement("LOWT", "low-amplitude T waves", None, None, form=True),
    Statement("NT_", "non-specific T-wave changes", None, None, form=True),
    Statement("PAC", "atrial premature complexes", None, None, form=True),
    Statement("LPR", "a prolonged PR interval", None, None, form=True),
    Statement("INVT", "inverted T waves", None, None, form=True),
    Statement("LVOLT", "low QRS voltages in the frontal and horizontal leads", None, None, form=True),
    Statement("HVOLT", "high QRS voltages", None, None, form=True),
    Statement("TAB_", "a T-wave abnormality", None, None, form=True),
    Statement("STE_", "non-specific ST elevation", None, None, form=True),
    Statement("PRC(S)", "premature complexes of unknown origin", None, None, form=True),
    # Rhythm.
    Statement("SR", "sinus rhythm", None, None, rhythm=True),
    Statement("AFIB", "atrial fibrillation", None, None, rhythm=True),
    Statement("STACH", "sinus tachycardia", None, None, rhythm=True),
    Statement("SARRH", "sinus arrhythmia", None, None, rhythm=True),
    Statement("SBRAD", "sinus bradycardia", None, None, rhythm=True),
    Statement("PACE", "a functioning artificial pacemaker", None, None, rhythm=True),
    Statement("SVARR", "a supraventricular arrhythmia", None, None, rhythm=True),
    Statement("BIGU", "a bigeminal pattern", None, None, rhythm=True),
    Statement("AFLT", "atrial flutter", None, None, rhythm=True),
    Statement("SVTAC", "supraventricular tachycardia", None, None, rhythm=True),
    Statement("PSVT", "paroxysmal supraventricular tachycardia", None, None, rhythm=True),
    Statement("TRIGU", "a trigeminal pattern", None, None, rhythm=True),
)

STATEMENTS: dict[str, Statement] = {statement.code: statement for statement in _TABLE}


def superclasses_of(labels: Iterable[str]) -> set[Superclass]:
    """The superclasses of the diagnostic statements among `labels` (codes, or a dict of likelihoods by code).

    Raises KeyError for a code outside the vocabulary; readers of outside data check theirs first.
    """
    return {s.superclass for s in (STATEMENTS[code] for code in labels) if s.superclass is not None}
