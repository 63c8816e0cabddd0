"""One page read by the champion, by another version, or by the adapter just trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from components.params import Params, UserError, nearest
from flows.report import Document

if TYPE_CHECKING:
    from components.registry.versions import Version

LOCAL_ADAPTER = Path("models/adapter")
NOTICE = "Not a medical device: a research tool's reading, no diagnosis. Do not treat anyone by it."


def interpret_page(params: Params, page: Path, number: int | None, alias: str | None) -> Document:
    """Probabilities of the superclasses and a short report about the ECG on `page`.

    Args:
        page: a picture, read by its content, whatever its name says.
        number: a version of the recipe's model.
        alias: or the version that bears this alias; neither: the champion, else the adapter in models/.

    Raises:
        UserError: the page is no picture, no such version, or a file of the adapter was changed.
    """
    from components.pages.codec import decode

    picture = decode(page)
    with _adapter(params, number, alias) as (reader_name, folder):
        from components.instruct.questions import REPORT_QUESTION, superclass_question
        from components.models.adapters import verify_adapter
        from components.reading.reader import Reader
        from components.records.statements import SUPERCLASSES

        manifest = verify_adapter(folder)
        reader = Reader.load(manifest["base"], folder, manifest["revision"], threads=params.evaluate.threads)
        scores = reader.score([picture], [superclass_question(name) for name in SUPERCLASSES])
        report = reader.answer([picture], REPORT_QUESTION)[0]
    return {
        "page": str(page),
        "reader": reader_name,
        "adapter_sha256": manifest["adapter_sha256"],
        "probabilities": {name: round(float(p), 4) for name, p in zip(SUPERCLASSES, scores.p_yes[0], strict=True)},
        "report": report,
        "notice": NOTICE,
    }


@contextmanager
def _adapter(params: Params, number: int | None, alias: str | None) -> Iterator[tuple[str, Path]]:
    from components.registry.files import ADAPTER, fetched

    version = _find_version(params, number, alias)
    if version is not None:
        with fetched(version) as folder:
            yield str(version), folder / ADAPTER
    elif LOCAL_ADAPTER.is_dir():
        yield f"{LOCAL_ADAPTER} (nothing is promoted yet)", LOCAL_ADAPTER
    else:
        raise UserError(
            f"'{params.registry.model}' has no champion and {LOCAL_ADAPTER} does not exist; make one: ecg retrain"
        )


def _find_version(params: Params, number: int | None, alias: str | None) -> Version | None:
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
