"""Rolling back: to the previous champion or a named former one, checked like a promotion."""

from __future__ import annotations

import pytest
from registry_project import BETTER, Register, aliases_of, served_folder, stages_of, twin, version_of

from components.models.adapters import WEIGHTS
from components.params import Params, UserError
from components.registry.gate import gate_version
from components.registry.promote import decide
from components.registry.rollback import rollback
from components.registry.versions import status


@pytest.fixture
def three(params: Params, champion: int) -> tuple[int, int, int]:
    """Three champions after each other; the last one serves."""
    second = twin(params, champion)
    decide(params)
    third = twin(params, champion)
    decide(params)
    return champion, second, third


def test_the_previous_champion_serves_again(params: Params, three: tuple[int, int, int]) -> None:
    first, second, third = three
    move = rollback(params, reason="misses infarctions at night", by="Ada")
    assert (move.since, move.to, move.by) == (third, second, "Ada")
    assert aliases_of(params) == {"champion": second, "previous-champion": first}
    assert stages_of(params) == {first: "Archived", second: "Production", third: "Archived"}
    left = version_of(params, third)
    assert left.rolled_back_reason == "misses infarctions at night"
    assert left.tags["rolled_back_by"] == "Ada"
    assert left.tags["rolled_back_to"] == str(second)
    assert decide(params) == [], "an approved version that was rolled back is not promoted again"
    assert status(params)[0].note == "misses infarctions at night"


def test_twice_goes_further_back_and_never_to_the_bad_one(params: Params, three: tuple[int, int, int]) -> None:
    first, _, third = three
    rollback(params, reason="a", by="Ada")
    rollback(params, reason="b", by="Ada")
    assert aliases_of(params) == {"champion": first}
    with pytest.raises(UserError, match="no previous champion; name a former one"):
        rollback(params, reason="c", by="Ada")
    rollback(params, reason="it was the electrodes", by="Ada", to=third)
    assert aliases_of(params)["champion"] == third
    assert version_of(params, third).rolled_back_reason is None
    assert version_of(params, first).rolled_back_reason == "it was the electrodes"


def test_what_cannot_be_rolled_back_to(params: Params, champion: int, registered: Register) -> None:
    never = registered(BETTER, seed=2).version
    gate_version(params, never)
    for to, expected in (
        (None, "has no previous champion"),
        (champion, "is the champion already"),
        (never, "was never champion"),
        (9, "found 9, expected a version of 'ecg-tiny'"),
    ):
        with pytest.raises(UserError, match=expected):
            rollback(params, reason="a", by="Ada", to=to)
    with pytest.raises(UserError, match="--reason: found nothing"):
        rollback(params, reason=" ", by="Ada")
    with pytest.raises(UserError, match="--by: found nothing"):
        rollback(params, reason="a", by="")
    assert aliases_of(params) == {"champion": champion, "challenger": never}


def test_without_a_champion(params: Params) -> None:
    with pytest.raises(UserError, match="'ecg-tiny' has no champion"):
        rollback(params, reason="a", by="Ada")


def test_a_changed_former_champion_is_refused(params: Params, three: tuple[int, int, int]) -> None:
    weights = served_folder(params, three[1]) / "artifacts/adapter" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    with pytest.raises(UserError, match="the file was changed"):
        rollback(params, reason="a", by="Ada")
    assert aliases_of(params)["champion"] == three[2]


def test_a_challenger_newer_than_the_restored_champion_waits_on(params: Params, three: tuple[int, int, int]) -> None:
    waiting = twin(params, three[0])
    rollback(params, reason="a", by="Ada")
    assert aliases_of(params)["challenger"] == waiting
    assert stages_of(params)[waiting] == "Staging"
