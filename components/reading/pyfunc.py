"""What MLflow loads and serves: pages in; probabilities of the five superclasses and an answer in words out.

Logged as code (`mlflow.models.set_model` at the end), so that no object is pickled. Each version carries a
copy of this package, the base's weights and the adapter, and stands alone.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from mlflow.types.schema import Array, ColSpec, DataType, ParamSchema, ParamSpec, Schema

from components.instruct.questions import REPORT_QUESTION, superclass_question
from components.pages.codec import decode
from components.params import UserError
from components.records.statements import SUPERCLASSES

if TYPE_CHECKING:
    from mlflow.models import ModelSignature
    from numpy.typing import NDArray

    from components.reading.reader import Reader

MAX_PAGES = 64  # in one request
MAX_PATH_CHARACTERS = 4096  # PATH_MAX of Linux: what is longer can only be base64
UNSURE = (0.35, 0.65)
_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.ASCII)


def signature() -> ModelSignature:
    """Inputs: `page` and optionally `question`, both text. Outputs: as `PageReader.predict` returns them."""
    from mlflow.models import ModelSignature

    text = partial(ColSpec, DataType.string)
    probabilities = [ColSpec(DataType.double, name) for name in SUPERCLASSES]
    flags = ColSpec(Array(DataType.string), "flags")
    return ModelSignature(
        inputs=Schema([text("page"), text("question", required=False)]),
        outputs=Schema([*probabilities, text("question"), text("answer"), flags, text("version")]),
        params=ParamSchema([ParamSpec("max_new_tokens", DataType.long, 96)]),
    )


class PageReader(PythonModel):
    """An adapter on its base, behind MLflow's `predict`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load base and adapter; every file of the adapter is checked against its manifest first.

        Raises:
            UserError: a file was changed, or the adapter belongs to another base.
        """
        from components.reading.reader import Reader

        adapter = Path(context.artifacts["adapter"])
        config = context.model_config
        self.reader: Reader = Reader.load(
            config["base"], adapter=adapter, revision=config["revision"], threads=config["threads"]
        )
        self.page_size: tuple[int, int] = (config["width_px"], config["height_px"])
        self.version = _version_of(adapter.parents[1])

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Read pages.

        Args:
            context: as MLflow passes it; unused, `load_context` has read it.
            model_input: columns `page` (a path on the machine that answers, base64 of an image file, or a data
                URL) and, where wanted, `question`. MLflow makes the table of the lists and mappings it is sent.
            params: `max_new_tokens` of the answer, 1 to 512.

        Returns:
            One row a page: NORM, MI, STTC, CD, HYP (probability of yes, 0 to 1), question, answer, flags
            (what to be wary of: small-page, unusual-shape, blank-page, unsure) and version.

        Raises:
            MlflowException: INVALID_PARAMETER_VALUE, which a server answers as 400; names row and reason.
        """
        rows = _rows(model_input)
        max_new_tokens = int((params or {}).get("max_new_tokens", 96))
        if not 1 <= max_new_tokens <= 512:
            raise _invalid(f"params.max_new_tokens: found {max_new_tokens}, expected 1 to 512")
        pages = [_page(row.get("page"), index) for index, row in enumerate(rows)]
        questions = [_question(row.get("question"), index) for index, row in enumerate(rows)]
        scores = self.reader.score(pages, [superclass_question(name) for name in SUPERCLASSES])
        answers = self._answers(pages, questions, max_new_tokens)
        return pd.DataFrame(
            [
                {
                    **{name: float(p) for name, p in zip(SUPERCLASSES, probabilities, strict=True)},
                    "question": question,
                    "answer": answer,
                    "flags": self._flags(page, probabilities),
                    "version": self.version,
                }
                for page, probabilities, question, answer in zip(pages, scores.p_yes, questions, answers, strict=True)
            ]
        )

    def _answers(self, pages: list[NDArray[np.uint8]], questions: list[str], max_new_tokens: int) -> list[str]:
        answers = [""] * len(pages)
        for question in dict.fromkeys(questions):
            asked = [index for index, other in enumerate(questions) if other == question]
            try:
                texts = self.reader.answer([pages[index] for index in asked], question, max_new_tokens=max_new_tokens)
            except UserError as error:  # a question that spells one of the model's own tokens
                raise _invalid(f"question of page {asked[0]}: {error}") from error
            for index, text in zip(asked, texts, strict=True):
                answers[index] = text
        return answers

    def _flags(self, page: NDArray[np.uint8], probabilities: NDArray[np.float32]) -> list[str]:
        height, width = page.shape[:2]
        wanted_width, wanted_height = self.page_size
        flags = []
        if width < wanted_width or height < wanted_height:
            flags.append("small-page")
        if not 0.5 < (width / height) / (wanted_width / wanted_height) < 2.0:
            flags.append("unusual-shape")
        if float(page.std()) < 2.0:
            flags.append("blank-page")
        if all(p < UNSURE[1] for p in probabilities) and any(p > UNSURE[0] for p in probabilities):
            flags.append("unsure")
        return flags


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    if "page" not in table.columns:
        found = ", ".join(map(str, table.columns)) or "nothing"
        raise _invalid(f"input: found the columns {found}; expected 'page' and, where wanted, 'question'")
    lists = [name for name in table.columns if table[name].map(lambda cell: isinstance(cell, list)).any()]
    try:
        table = table.explode(lists) if lists else table  # MLflow makes one row of a mapping of lists
    except ValueError as error:
        raise _invalid(f"input: {error}; expected as many questions as pages") from error
    if not 1 <= len(table) <= MAX_PAGES:
        raise _invalid(f"input: found {len(table)} pages, expected 1 to {MAX_PAGES} in one request")
    return [{str(key): value for key, value in row.items()} for row in table.to_dict(orient="records")]


def _page(value: Any, index: int) -> NDArray[np.uint8]:
    if not isinstance(value, str) or not value.strip():
        raise _invalid(f"page {index}: found {_shown(value)}, expected a path, base64 of an image or a data URL")
    text = value.strip()
    try:
        return decode(_image_bytes(text))
    except UserError as error:
        raise _invalid(f"page {index}: {error}") from error


def _image_bytes(text: str) -> bytes | Path:
    header = _DATA_URL.match(text)
    if header is None and len(text) <= MAX_PATH_CHARACTERS and os.path.isfile(text):
        return Path(text)
    try:
        data = base64.b64decode(text[header.end() if header else 0 :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"{_shown(text)} is neither a file here nor base64 of an image ({error})") from error
    if header is None and len(data) < 64:  # a mistyped file name may be valid base64 by chance
        raise UserError(f"{_shown(text)} is no file here, and too short to be an image in base64")
    return data


def _question(value: Any, index: int) -> str:
    if value is None or value != value or value == "":  # absent, NaN of a table's gap, or empty
        return REPORT_QUESTION
    if not isinstance(value, str) or len(value) > 500:
        raise _invalid(f"question {index}: found {_shown(value)}, expected text of at most 500 characters")
    return value


def _version_of(folder: Path) -> str:
    """'ecg-tiny/3' where MLflow loaded a registered version; else the hash of the adapter tells it apart."""
    import json

    import yaml

    meta = folder / "registered_model_meta"
    if meta.is_file():
        told = yaml.safe_load(meta.read_text())
        return f"{told['model_name']}/{told['model_version']}"
    manifest = json.loads((folder / "artifacts" / "adapter" / "manifest.json").read_text())
    return f"adapter {manifest['adapter_sha256'][:12]}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…'"


def _invalid(message: str) -> MlflowException:
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

    return MlflowException(message, error_code=INVALID_PARAMETER_VALUE)


mlflow.models.set_model(PageReader())
