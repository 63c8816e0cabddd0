"""The rules of a team's server, one by one: who may write which tag, alias and stage (the server: tests/e2e)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress

import pytest

from components.registry.team import (
    APPROVERS,
    PROMOTERS,
    READERS,
    TRAINERS,
    Account,
    Forbidden,
    may_create_version,
    may_delete_tag,
    may_move_alias,
    may_move_stage,
    may_set_tag,
    may_tag_model,
)

RITA, TOM, ADA, DECIDER = (
    Account(name, frozenset({role}), admin=False)
    for name, role in (("rita", READERS), ("tom", TRAINERS), ("ada", APPROVERS), ("decider", PROMOTERS))
)
NOBODY = Account("nobody", frozenset(), admin=False)
ADMIN = Account("admin", frozenset(), admin=True)
ALL = (NOBODY, RITA, TOM, ADA, DECIDER, ADMIN)

WAITING = {"gate": "passed", "approval": "pending", "adapter_sha256": "a" * 64}
APPROVED = {**WAITING, "approval": "approved", "approved_by": "ada"}


def allowed(rule: Callable[..., None], *what: object) -> set[str]:
    """The names of those who may."""
    names = set()
    for account in ALL:
        with suppress(Forbidden):
            rule(account, *what)
            names.add(account.name)
    return names


@pytest.mark.parametrize(
    ("key", "value", "tags", "names"),
    [
        ("approval", "approved", WAITING, {"ada", "decider"}),
        ("approval", " Approved ", WAITING, {"ada", "decider"}),
        ("approval", "rejected", WAITING, {"ada", "decider"}),
        ("approval", "approved", {}, {"decider"}),  # before the gate
        ("approval", "approved", {**WAITING, "gate": "failed"}, {"decider"}),
        ("approval", "maybe", WAITING, {"decider"}),
        ("approval", "rejected", APPROVED, {"decider"}),  # final
        ("approval", "pending", APPROVED, {"decider"}),
        ("approval", "approved", APPROVED, {"ada", "decider"}),  # she says again what stands there
        ("approval", "approved", {**APPROVED, "approved_by": "bea"}, {"decider"}),
        ("approval", "pending", {}, {"tom", "decider"}),  # the gate's
        ("approved_by", "ada", WAITING, {"ada", "decider"}),
        ("approved_by", "bea", WAITING, {"decider"}),
        ("approved_by", "bea, ada", WAITING, {"decider"}),
        ("approved_by", "bea, ada", {**WAITING, "approved_by": "bea"}, {"ada", "decider"}),
        ("approved_by", "ada", APPROVED, {"decider"}),
        ("approval_note", "why", WAITING, {"ada", "decider"}),
        ("adapter_sha256", "b" * 64, WAITING, set()),  # written once, for admins too
        ("adapter_sha256", "a" * 64, WAITING, {"tom", "decider", "admin"}),
        ("trained_by", "ada", {**WAITING, "trained_by": "tom"}, set()),
        ("promoted_at", "2026", APPROVED, {"decider", "admin"}),
        ("promotion_refused", "x", APPROVED, {"decider", "admin"}),
        ("rolled_back_to", "1", APPROVED, {"decider", "admin"}),
        ("gate", "passed", {}, {"tom", "decider", "admin"}),
    ],
)
def test_who_may_set_a_tag(key: str, value: str, tags: Mapping[str, str], names: set[str]) -> None:
    assert allowed(may_set_tag, key, value, tags) == names


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("adapter_sha256", set()),
        ("approval", {"decider", "admin"}),
        ("promoted_at", {"decider", "admin"}),
        ("gate_reason", {"tom", "decider", "admin"}),
    ],
)
def test_who_may_delete_a_tag(key: str, names: set[str]) -> None:
    assert allowed(may_delete_tag, key) == names


@pytest.mark.parametrize(
    ("tags", "names"),
    [
        ({"recipe": "ecg-tiny"}, {"tom", "decider", "admin"}),
        ({"trained_by": "tom"}, {"tom"}),
        ({"approval": "approved"}, set()),
        ({"approved_by": "ada"}, set()),
        ({"promoted_at": "2026"}, set()),
    ],
)
def test_who_may_register_with_which_tags(tags: Mapping[str, str], names: set[str]) -> None:
    assert allowed(may_create_version, tags) == names


@pytest.mark.parametrize(
    ("alias", "names"),
    [
        ("champion", {"decider", "admin"}),
        ("previous-champion", {"decider", "admin"}),
        ("challenger", {"tom", "ada", "decider", "admin"}),
        ("mine", {"tom", "decider", "admin"}),
    ],
)
def test_who_may_move_an_alias(alias: str, names: set[str]) -> None:
    assert allowed(may_move_alias, alias) == names


@pytest.mark.parametrize(
    ("stage", "aliases", "names"),
    [
        ("Production", set(), {"decider", "admin"}),
        ("Archived", {"champion"}, {"decider", "admin"}),
        ("Staging", {"previous-champion"}, {"decider", "admin"}),
        ("Staging", {"challenger"}, {"tom", "ada", "decider", "admin"}),
    ],
)
def test_who_may_move_a_stage(stage: str, aliases: set[str], names: set[str]) -> None:
    assert allowed(may_move_stage, stage, frozenset(aliases)) == names


@pytest.mark.parametrize(
    ("key", "delete", "names"),
    [
        ("ledger_head", False, {"tom", "ada", "decider", "admin"}),
        ("ledger_head", True, {"decider", "admin"}),
        ("champion_move", False, {"decider", "admin"}),
    ],
)
def test_who_may_tag_a_model(key: str, delete: bool, names: set[str]) -> None:
    assert allowed(may_tag_model, key, delete) == names
