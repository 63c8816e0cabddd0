"""Tasks for the tests of executors, in a module of their own so that workers can import them."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from components.params import UserError


@dataclass(frozen=True, slots=True)
class Number:
    value: int

    @property
    def name(self) -> str:
        return f"number-{self.value}"


def name_of(number: Number) -> str:
    return number.name


def square(number: Number) -> int:
    return number.value**2


def slow_square(number: Number) -> int:
    time.sleep(0.02)
    return number.value**2


def square_or_refuse(number: Number, *, bad: int) -> int:
    if number.value == bad:
        raise UserError("this one is refused")
    return number.value**2


def square_or_die(number: Number, *, poison: int) -> int:
    if number.value == poison:
        os.kill(os.getpid(), signal.SIGKILL)
    return number.value**2


def square_or_die_once(number: Number, *, poison: int, mark: str) -> int:
    if number.value == poison and not Path(mark).exists():
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number.value**2
