"""The deployment `reproduce`: a version made again on a worker, by whoever asks in Prefect's pages."""

from __future__ import annotations

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from components.params import load_params
from flows import notify
from flows.report import Document


@flow(name="reproduce", on_failure=[notify.on_failure], on_crashed=[notify.on_crashed])
def reproduce(version: int, by: str, from_source: bool = False) -> Document:
    """Make a version again from its own commit, and say whether it is the same. What comes of it goes into the ledger.

    Args:
        version: The version's number in MLflow.
        by: Who asks; kept with the result.
        from_source: Rebuild the data too, instead of pulling what the version's lock names.

    Raises:
        UserError: no such version, its revision is not in this git, or its record was changed.
        StageFailed: a stage cannot be run again.
    """
    from flows import clone
    from flows.reproduce import reproduce as make_again

    clone.complete()
    answer = make_again(load_params(), version, by, None, from_source)
    text = f"# {answer['model']} version {version}: {answer['outcome']}\n\n{answer['sentence']}\n"
    create_markdown_artifact(text, key="reproduction")
    return answer
