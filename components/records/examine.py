"""What is done to every record before it is stored: read, set aside or flagged, and measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from components.records.measure import measure
from components.records.quality import drop_reason, flags
from components.records.schema import Dropped, Record


def examine(raw: Any, *, read: Callable[[Any], Record | Dropped], seconds: float) -> Record | Dropped:
    """The record that `read` makes of `raw`: flagged where doubtful, measured where its source did not.

    One that cannot be used, as when it is shorter than `seconds`, is set aside with the reason.
    """
    record = read(raw)
    if isinstance(record, Dropped):
        return record
    if reason := drop_reason(record.signal_uv, record.sampling_rate_hz, seconds):
        return Dropped(record.record_id, *reason)
    return replace(
        record,
        quality=tuple(sorted({*record.quality, *flags(record.signal_uv, record.sampling_rate_hz)})),
        measurements=record.measurements or measure(record.signal_uv, record.sampling_rate_hz),
    )
