"""One page or record read by the champion, by another version, or by the adapter just trained."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from components.params import Params, UserError, nearest
from flows.report import Document

if TYPE_CHECKING:
    from components.reading.inputs import Shown
    from components.registry.versions import Version

LOCAL_ADAPTER = Path("models/adapter")
RECORD = ".json"  # a record's file; everything else is taken for a picture


def interpret_page(
    params: Params, page: Path, number: int | None, alias: str | None, question: str | None = None
) -> Document:
    """Probabilities of the superclasses and an answer about the ECG on `page`.

    Args:
        page: a picture, read by its content, whatever its name says; or a record, NAME.json with `signal_uv` (12 leads
            of samples in microvolts), `sampling_rate_hz` and, where wanted, `leads`.
        number: a version of the recipe's model.
        alias: or the version that bears this alias; neither: the champion, else the adapter in models/.
        question: what is asked; None: for a short report.

    Raises:
        UserError: the page is no picture or record, no such version, or a file of the adapter was changed.
    """
    from components.reading.inputs import read_question

    shown, asked = _shown(params, page), read_question(question)
    with _adapter(params, number, alias) as (reader_name, folder):
        from components.reading.interpretation import FLAGS, NOTICE, interpret
        from components.reading.readers import Readers

        readers = Readers(params.evaluate.threads)
        manifest = readers.add(reader_name, folder)
        with readers.using(reader_name) as reader:
            (reading,) = interpret(reader, [shown], [asked], (params.pages.width_px, params.pages.height_px))
    return {
        "page": str(page),
        "reader": reader_name,
        "adapter_sha256": manifest["adapter_sha256"],
        "probabilities": {name: round(p, 4) for name, p in reading.probabilities.items()},
        "question": reading.question,
        "answer": reading.answer,
        "flags": {flag: FLAGS[flag] for flag in reading.flags},
        "notice": NOTICE,
    }


def _shown(params: Params, path: Path) -> Shown:
    from components.pages.codec import read_file
    from components.reading.inputs import read_page, read_record, record_spec

    data = read_file(path)
    try:
        if path.suffix.lower() != RECORD:
            return read_page(data, None)
        return read_record(json.loads(data), record_spec(params.exams))
    except UserError as error:
        raise UserError(f"{path}: {str(error).removeprefix('image: ')}") from error
    except ValueError as error:
        raise UserError(f"{path}: is no JSON ({error}); expected a record") from error


@contextmanager
def _adapter(params: Params, number: int | None, alias: str | None) -> Iterator[tuple[str, Path]]:
    from components.registry.files import ADAPTER, verified
    from components.registry.signing import signature_policy

    version = find_version(params, number, alias)
    if version is not None:
        with verified(version, signature_policy(params)) as folder:
            yield str(version), folder / ADAPTER
    elif LOCAL_ADAPTER.is_dir():
        yield f"{LOCAL_ADAPTER} (nothing is promoted yet)", LOCAL_ADAPTER
    else:
        raise UserError(
            f"'{params.registry.model}' has no champion and {LOCAL_ADAPTER} does not exist; make one: ecg retrain"
        )


def find_version(params: Params, number: int | None, alias: str | None) -> Version | None:
    """The version of that number, or that bears the alias; without either the champion, None where there is none.

    Raises:
        UserError: both are given, or there is no such version.
    """
    from components.registry.store import connect
    from components.registry.versions import CHAMPION, read_aliases, read_version

    if number is not None and alias is not None:
        raise UserError(f"--version {number} and --alias {alias}: found both, expected one of them")
    client, model = connect(params.registry), params.registry.model
    if number is None:
        aliases = read_aliases(client, model)
        if alias is not None and alias not in aliases:
            raise UserError(f"--alias: '{model}' has no version called '{alias}'{nearest(alias, aliases)}")
        number = aliases.get(alias or CHAMPION)
    return None if number is None else read_version(client, model, number)
