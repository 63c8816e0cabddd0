"""What MLflow loads and serves: pages or records in; probabilities of the superclasses and an answer in words out.

Logged as code (`mlflow.models.set_model` at the end), so that no object is pickled. Each version carries a copy of this
package, the bases that ship with it and the adapter.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from mlflow.types.schema import AnyType, Array, ColSpec, DataType, ParamSchema, ParamSpec, Schema

from components.models.signatures import check_folder, policy_of_environment
from components.pages.guard import OVERSIZE, PageRefused
from components.pages.spec import PageSpec
from components.params import Params, UserError
from components.reading.inputs import Shown, read_page, read_question, read_record, record_spec
from components.reading.interpretation import interpret
from components.reading.readers import Readers
from components.records.statements import SUPERCLASSES

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

MAX_PAGES = 64  # in one request
MAX_MEGAPIXELS = 200  # of one request's pages together: 600 MB in memory
MAX_NEW_TOKENS = 512
SERVED_BY_MLFLOW = "_MLFLOW_IS_IN_SERVING_ENVIRONMENT"  # MLflow's own note that requests come from outside


def signature() -> ModelSignature:
    """Inputs: `page` or `record`, and `question` where wanted. Outputs: as `PageReader.predict` returns them.

    MLflow lets page and record pass as they are: `components.reading.inputs` tells more exactly what is wrong.
    """
    from mlflow.models import ModelSignature

    text = partial(ColSpec, DataType.string)
    probabilities = [ColSpec(DataType.double, name) for name in SUPERCLASSES]
    flags = ColSpec(Array(DataType.string), "flags")
    anything: Any = AnyType  # has no types
    sent = [ColSpec(anything(), name, required=False) for name in ("page", "record")]
    return ModelSignature(
        inputs=Schema([*sent, text("question", required=False)]),
        outputs=Schema([*probabilities, text("question"), text("answer"), flags, text("version")]),
        params=ParamSchema([ParamSpec("max_new_tokens", DataType.long, 96), ParamSpec("adapter", DataType.string, "")]),
    )


def model_config(params: Params) -> dict[str, Any]:
    """What a version's reader is set to; MLflow lets whoever loads it set other values.

    `pages_folder`: paths of pages lead below it. Null: the working directory, and where MLflow serves it no path at
    all. `adapters`: adapters to read by in place of the version's own, name → folder and version; the first answers
    where a request names none.
    """
    return {
        "threads": params.evaluate.threads,
        "width_px": params.pages.width_px,
        "height_px": params.pages.height_px,
        "record_page": record_spec(params.exams).to_dict(),
        "pages_folder": None,
        "adapters": None,
    }


class PageReader(PythonModel):
    """Adapters on their bases, behind MLflow's `predict`."""

    on_refused: Callable[[str], None] | None = None  # told the kind (`components.pages.guard`) of every refused page

    def load_context(self, context: PythonModelContext) -> None:
        """Load base and adapter; signature and every file of the adapter are checked first.

        Raises:
            UserError: a file was changed, a signature does not hold ($ECG_TRUSTED_KEYS, $ECG_SIGNATURE_REQUIRED), the
                base cannot be had here, or the adapter belongs to another one.
        """
        config = context.model_config
        self.readers = Readers(config["threads"])
        self.page_size: tuple[int, int] = (config["width_px"], config["height_px"])
        self.record_page = PageSpec.from_dict(config["record_page"])
        self.pages_folder = None if config["pages_folder"] is None else Path(config["pages_folder"]).absolute()
        self.served: dict[str, str] = {}  # name in a request → version
        self._turn = threading.RLock()
        adapters = config["adapters"]
        if adapters is None:
            folder = Path(context.artifacts["adapter"])
            check_folder(folder.parents[1], policy_of_environment())
            adapters = {"": {"folder": str(folder), "version": _version_of(folder.parents[1])}}
        for name, one in adapters.items():
            self.put(name, Path(one["folder"]), one["version"])

    def put(self, name: str, folder: Path, version: str) -> None:
        """Answer requests for `name` by the adapter of `folder` from now on; the one before is forgotten.

        Raises:
            UserError: as `Readers.add`; the one before goes on answering.
        """
        if version not in self.readers.names:
            self.readers.add(version, folder)
        with self._turn:
            self.served = {**self.served, name: version}
            self._forget_unused()

    def drop(self, name: str) -> None:
        """Answer no requests for `name` any more."""
        with self._turn:
            self.served = {key: version for key, version in self.served.items() if key != name}
            self._forget_unused()

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Read pages.

        Args:
            context: as MLflow passes it; unused, `load_context` has read it.
            model_input: one row a page, with `page` (bytes or base64 of an image file, a data URL, or a path below
                `pages_folder`) or `record` (a mapping of `signal_uv`, `sampling_rate_hz`, `leads`), and `question`
                where wanted. MLflow makes the table of the lists and mappings it is sent.
            params: `max_new_tokens` of the answer, 1 to 512; `adapter`, where there are several.

        Returns:
            One row a page: NORM, MI, STTC, CD, HYP (probability of yes, 0 to 1), question, answer, flags (what to be
            wary of; `components.reading.interpretation.FLAGS`) and version.

        Raises:
            MlflowException: INVALID_PARAMETER_VALUE, which a server answers as 400; names row and reason.
        """
        with self._turn:  # one request at a time holds its pages in memory
            try:
                return self._read(model_input, params or {})
            except UserError as error:
                if self.on_refused is not None and isinstance(error, PageRefused):
                    self.on_refused(error.kind)
                raise _invalid(str(error)) from error

    def _read(self, table: pd.DataFrame, params: dict[str, Any]) -> pd.DataFrame:
        max_new_tokens = int(params.get("max_new_tokens", 96))
        if not 1 <= max_new_tokens <= MAX_NEW_TOKENS:
            raise UserError(f"params.max_new_tokens: found {max_new_tokens}, expected 1 to {MAX_NEW_TOKENS}")
        name = str(params.get("adapter", "")) or next(iter(self.served))
        if name not in self.served:
            raise UserError(f"params.adapter: found '{name[:40]}', expected one of: {', '.join(self.served)}")
        rows = _rows(table)
        questions = [_told(f"question {index}", read_question, row.get("question")) for index, row in enumerate(rows)]
        pages = self._pages(rows)
        version = self.served[name]
        with self.readers.using(version) as reader:
            readings = interpret(reader, pages, questions, self.page_size, max_new_tokens)
        return pd.DataFrame(
            [
                {
                    **reading.probabilities,
                    "question": reading.question,
                    "answer": reading.answer,
                    "flags": list(reading.flags),
                    "version": version,
                }
                for reading in readings
            ]
        )

    def _pages(self, rows: Sequence[dict[str, Any]]) -> list[Shown]:
        folder = self.pages_folder
        if folder is None and os.environ.get(SERVED_BY_MLFLOW, "").lower() not in ("true", "1"):
            folder = Path.cwd()
        pages: list[Shown] = []
        pixels = 0
        for index, row in enumerate(rows):
            sent = [name for name in ("page", "record") if not _absent(row.get(name))]
            if len(sent) != 1:
                found = "both" if sent else "neither"
                raise UserError(f"row {index}: found {found}, expected 'page' or 'record'")
            if sent == ["page"]:
                pages.append(_told(f"page {index}", read_page, row["page"], folder))
            else:
                pages.append(_told(f"record {index}", read_record, row["record"], self.record_page))
            pixels += pages[-1].page.shape[0] * pages[-1].page.shape[1]
            if pixels > MAX_MEGAPIXELS * 1_000_000:
                raise PageRefused(
                    OVERSIZE,
                    f"page {index}: {pixels / 1e6:.0f} megapixels up to here, expected at most {MAX_MEGAPIXELS} in one "
                    "request; send fewer pages",
                )
        return pages

    def _forget_unused(self) -> None:
        for version in set(self.readers.names) - set(self.served.values()):
            self.readers.remove(version)


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    if not {"page", "record"} & set(table.columns):
        found = ", ".join(map(str, table.columns))[:100] or "nothing of it"
        raise UserError(f"input: found {found}; expected 'page' or 'record' and, where wanted, 'question'")
    lists = [name for name in table.columns if table[name].map(lambda cell: isinstance(cell, list)).any()]
    try:
        table = table.explode(lists) if lists else table  # MLflow makes one row of a mapping of lists
    except ValueError as error:
        raise UserError(f"input: {error}; expected as many questions as pages") from error
    if not 1 <= len(table) <= MAX_PAGES:
        raise UserError(f"input: found {len(table)} pages, expected 1 to {MAX_PAGES} in one request")
    return [{str(key): value for key, value in row.items()} for row in table.to_dict(orient="records")]


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)  # NaN of a table's gap


def _told(what: str, read: Callable[..., Any], *arguments: Any) -> Any:
    """What `read` makes of its arguments; its error names the row."""
    try:
        return read(*arguments)
    except PageRefused as error:
        raise PageRefused(error.kind, f"{what}: {error}") from error
    except UserError as error:
        raise UserError(f"{what}: {error}") from error


def _version_of(folder: Path) -> str:
    """'ecg-tiny/3' where MLflow loaded a registered version; else the hash of the adapter tells it apart."""
    import yaml

    meta = folder / "registered_model_meta"
    if meta.is_file():
        told = yaml.safe_load(meta.read_text())
        return f"{told['model_name']}/{told['model_version']}"
    manifest = json.loads((folder / "artifacts" / "adapter" / "manifest.json").read_text())
    return f"adapter {manifest['adapter_sha256'][:12]}"


def _invalid(message: str) -> MlflowException:
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

    return MlflowException(message, error_code=INVALID_PARAMETER_VALUE)


mlflow.models.set_model(PageReader())
