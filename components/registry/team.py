"""MLflow's server for a team: basic-auth, and rules about who may write what in the registry.

`mlflow server --app-name ecg-team` (an entry point `mlflow.app`) is MLflow's own authenticated server with a guard
behind it. MLflow grants a whole model or nothing; the guard knows tags and aliases: who approves is the account that
is logged in, a decision is final, a hash is written once, and only the account of `decide` moves the champion.
Accounts get their rights by the four roles below; `ecg team` makes them.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from components.registry.champion import PRODUCTION
from components.registry.server import APPROVALS, LEASE
from components.registry.versions import APPROVED, CHALLENGER, CHAMPION, PASSED, PENDING, PREVIOUS_CHAMPION, REJECTED

if TYPE_CHECKING:
    from fastapi import FastAPI
    from flask import Flask, Response
    from mlflow.entities.model_registry import ModelVersion

READERS, TRAINERS, APPROVERS, PROMOTERS = "readers", "trainers", "approvers", "promoters"
ROLES: Mapping[str, Mapping[str, str]] = {  # role -> what MLflow itself grants: resource -> permission
    READERS: {"experiment": "READ", "registered_model": "READ"},
    TRAINERS: {"experiment": "EDIT", "registered_model": "MANAGE"},
    APPROVERS: {"experiment": "READ", "registered_model": "MANAGE"},
    PROMOTERS: {"experiment": "EDIT", "registered_model": "MANAGE"},
}
MAKERS = frozenset({TRAINERS, PROMOTERS})

LEASE_SECONDS = 60
MODEL_NAME, HOLDER = re.compile(r"[A-Za-z0-9][\w.-]{0,99}", re.ASCII), re.compile(r"[\w.@-]{8,200}", re.ASCII)

DECIDED = frozenset({APPROVED, REJECTED})
DECISION_TAGS = frozenset({"approval", "approved_by", "approval_note"})
MOVE_TAGS = re.compile(r"promoted_.*|promotion_refused|rolled_back_.*|removed")
WRITTEN_ONCE = frozenset(
    {
        *("recipe", "git_rev", "dvc_lock_md5", "data_md5", "base", "base_revision", "adapter_sha256", "files_sha256"),
        *("exam_sha256", "training_inputs", "trained_by"),
    }
)
LEDGER_TAGS = re.compile(r"ledger_.*")  # of the registered model: how far MLflow shows the ledger
MOVED_ALIASES = frozenset({CHAMPION, PREVIOUS_CHAMPION})

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Account:
    """Who sent a request."""

    name: str
    roles: frozenset[str]
    admin: bool

    def has(self, *roles: str) -> bool:
        return not self.roles.isdisjoint(roles)

    @property
    def writes(self) -> bool:
        return self.admin or self.has(TRAINERS, APPROVERS, PROMOTERS)


class Forbidden(Exception):
    """What an account may not do, with the reason it is told."""


def may_set_tag(account: Account, key: str, value: str, tags: Mapping[str, str]) -> None:
    """Whether `account` may set a tag of a version whose tags are `tags`.

    Raises:
        Forbidden: it may not.
    """
    if key in DECISION_TAGS:
        _may_decide(account, key, value, tags)
    elif key in WRITTEN_ONCE and tags.get(key, value) != value:
        raise Forbidden(f"{key} says what the version was made from; it is written once, at registration")
    elif MOVE_TAGS.fullmatch(key):
        _need(account, f"{key} is written by the account of `decide`", PROMOTERS)
    else:
        _need(account, f"{key} is written by those who train and gate", *MAKERS)


def _may_decide(account: Account, key: str, value: str, tags: Mapping[str, str]) -> None:
    if account.has(PROMOTERS):  # `decide` puts back what the ledger says
        return
    found, wanted = _word(tags.get("approval")), _word(value)
    mine = account.name in _names(tags.get("approved_by"))
    if found in DECIDED and key == "approval" and wanted == found and mine and account.has(APPROVERS):
        return  # says again, for the record, what it is said to have decided
    if found in DECIDED:
        raise Forbidden(f"the version is {found} by {tags.get('approved_by', 'somebody')}, and that is final")
    if key == "approval" and wanted == PENDING and account.has(TRAINERS):
        return
    _need(account, f"{key} is for approvers", APPROVERS, admins=False)
    if key == "approval":
        if wanted not in DECIDED:
            raise Forbidden(f"approval: found '{value}', expected {APPROVED} or {REJECTED}")
        if _word(tags.get("gate")) != PASSED or found != PENDING:
            raise Forbidden("the version has not passed the gate; only versions that passed can be decided on")
    others = _names(value) - {account.name}
    if key == "approved_by" and (account.name not in _names(value) or not others <= _names(tags.get("approved_by"))):
        raise Forbidden(f"approved_by: found '{value}', expected '{account.name}', the account that is logged in")


def may_delete_tag(account: Account, key: str) -> None:
    """Whether `account` may delete a version's tag.

    Raises:
        Forbidden: it may not.
    """
    if key in WRITTEN_ONCE:
        raise Forbidden(f"{key} says what the version was made from; it stays")
    if key in DECISION_TAGS or MOVE_TAGS.fullmatch(key):
        _need(account, f"{key} is deleted by nobody but the account of `decide`", PROMOTERS)
    else:
        _need(account, f"{key} is written by those who train and gate", *MAKERS)


def may_create_version(account: Account, tags: Mapping[str, str]) -> None:
    """Whether `account` may register a version with these tags.

    Raises:
        Forbidden: it may not, or the tags say what only later may be said, or that another trained it.
    """
    _need(account, "versions are registered by trainers", *MAKERS)
    for key in tags:
        if key in DECISION_TAGS or MOVE_TAGS.fullmatch(key):
            raise Forbidden(f"a version cannot be registered with the tag {key}")
    if tags.get("trained_by", account.name) != account.name:
        raise Forbidden(f"trained_by: found '{tags['trained_by']}', expected '{account.name}', who is logged in")


def may_move_alias(account: Account, alias: str) -> None:
    """Whether `account` may set or delete an alias.

    Raises:
        Forbidden: it may not.
    """
    if alias in MOVED_ALIASES:
        _need(account, f"the alias {alias} is moved by the account of `decide`", PROMOTERS)
    elif alias == CHALLENGER:
        _need(account, f"the alias {alias} is the gate's", TRAINERS, APPROVERS, PROMOTERS)
    else:
        _need(account, "aliases are set by trainers", *MAKERS)


def may_move_stage(account: Account, stage: str, aliases: frozenset[str]) -> None:
    """Whether `account` may show a version, which holds `aliases`, in `stage`.

    Raises:
        Forbidden: it may not.
    """
    if stage == PRODUCTION or aliases & MOVED_ALIASES:
        _need(account, "the champion's stage is moved by the account of `decide`", PROMOTERS)
    else:
        _need(account, "stages follow the gate", TRAINERS, APPROVERS, PROMOTERS)


def may_tag_model(account: Account, key: str, delete: bool) -> None:
    """Whether `account` may write a tag of a registered model.

    Raises:
        Forbidden: it may not.
    """
    if LEDGER_TAGS.fullmatch(key) and not delete:
        _need(account, f"{key} is written with the ledger", TRAINERS, APPROVERS, PROMOTERS)
    else:
        _need(account, f"{key} is written by the account of `decide`", PROMOTERS)


def _need(account: Account, what: str, *roles: str, admins: bool = True) -> None:
    if account.has(*roles) or (admins and account.admin):
        return
    raise Forbidden(f"{what}: it takes the role {' or '.join(sorted(roles))}, which '{account.name}' does not have")


def _word(text: str | None) -> str | None:
    return None if text is None else text.strip().lower()


def _names(text: str | None) -> set[str]:
    """Those who approved, where several have to."""
    return {name.strip() for name in (text or "").split(",") if name.strip()}


def create_app() -> FastAPI | Flask:
    """MLflow's authenticated server with the guard: what `mlflow server --app-name ecg-team` runs in each worker.

    Raises:
        MlflowException: no secret key or no admin's password is set.
    """
    from mlflow.server import app, auth
    from mlflow.server.handlers import catch_mlflow_exception

    with _one_worker_at_a_time():
        served: FastAPI | Flask = auth.create_app(app)
        _make_roles()
        _make_tables()
    app.before_request(catch_mlflow_exception(_guard))  # type: ignore[no-untyped-call]
    app.after_request(_after)
    app.add_url_rule(LEASE, "ecg_lease", _lease, methods=["POST"])
    app.add_url_rule(APPROVALS, "ecg_approvals", _approvals, methods=["GET"])
    # MLflow refuses what it does not know. Who may have a lease is asked by `_guard`.
    auth.BEFORE_REQUEST_VALIDATORS[LEASE, "POST"] = lambda: True
    auth.BEFORE_REQUEST_VALIDATORS[APPROVALS, "GET"] = auth.validate_can_read_registered_model
    if not hasattr(served, "add_url_rule"):
        _guard_native_routes(served)  # served by FastAPI, past Flask
    return served


@contextmanager
def _one_worker_at_a_time() -> Iterator[None]:
    """MLflow sets an authentication database up only for its own app's name; here every worker does, one by one."""
    import sqlalchemy
    from mlflow.server.auth import auth_config

    engine = sqlalchemy.create_engine(auth_config.database_uri)
    try:
        if engine.dialect.name != "postgresql":  # SQLite serves one worker (infra/README.md)
            yield
            return
        with engine.connect() as connection:  # the lock ends with the connection, also when the worker is killed
            connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(hashtext('ecg-team'))"))
            yield
    finally:
        engine.dispose()


def _make_roles() -> None:
    from mlflow.server.auth import store
    from mlflow.utils.workspace_utils import DEFAULT_WORKSPACE_NAME

    known = {role.name for role in store.list_roles([DEFAULT_WORKSPACE_NAME])}
    for name, grants in ROLES.items():
        if name in known:
            continue
        role = store.create_role(name, DEFAULT_WORKSPACE_NAME, description=f"ecg-adapters: {name}")
        for resource, permission in grants.items():
            store.add_role_permission(role.id, resource, "*", permission)


def _account(name: str) -> Account:
    from mlflow.server.auth import store

    user = store.get_user(name)
    roles = frozenset(role.name for role in store.list_user_roles(user.id))
    return Account(name, roles, bool(user.is_admin))


def _guard() -> Response | None:
    """Flask's last word before a handler: None lets the request pass."""
    from flask import g, jsonify, make_response, request

    name = g.get("mlflow_authenticated_user")
    if name is None:  # health, static files: MLflow asks nobody to log in
        return None
    check = _checks().get(request.endpoint or "")
    try:
        account = _account(name)
        if check is not None:
            check(account)
        elif request.method not in ("GET", "HEAD", "OPTIONS") and not account.writes and not _reads(request.endpoint):
            raise Forbidden("readers only read")
    except Forbidden as reason:
        log.warning("%s may not %s: %r", name, (request.endpoint or "").strip("_"), str(reason))
        body = {"error_code": "PERMISSION_DENIED", "message": f"ecg: {reason}"}
        return make_response(jsonify(body), 403)
    return None


def _reads(endpoint: str | None) -> bool:
    """Whether a request that is no GET only reads, or concerns nobody but its sender."""
    word = (endpoint or "").lstrip("_").removeprefix("serve_")
    return word.startswith(("get_", "search_", "list_", "batch_get_", "query_", "calculate_", "graphql")) or word in (
        "update_user_password",
        "post_ui_telemetry",
    )


@cache
def _checks() -> Mapping[str, Callable[[Account], None]]:
    """Flask's endpoint -> what must hold. Read with MLflow's own parser, so that both see the same request."""
    from mlflow.protos import model_registry_pb2 as sent
    from mlflow.protos import service_pb2 as tracking
    from mlflow.server import handlers

    def message(kind: type[Any]) -> Any:
        return handlers._get_request_message(kind())  # type: ignore[no-untyped-call]

    def set_tag(account: Account) -> None:
        found = message(sent.SetModelVersionTag)
        tags = _version(found.name, found.version).tags
        may_set_tag(account, found.key, found.value, tags)
        if found.key == "approval" and _word(found.value) in DECIDED and not account.has(PROMOTERS):
            _record(found.name, found.version, account.name, str(_word(found.value)))
            if account.name not in _names(tags.get("approved_by")):
                _stamp(found.name, found.version, "approved_by", account.name)

    def delete_tag(account: Account) -> None:
        may_delete_tag(account, message(sent.DeleteModelVersionTag).key)

    def create_version(account: Account) -> None:
        tags = {tag.key: tag.value for tag in message(sent.CreateModelVersion).tags}
        may_create_version(account, tags)

    def move_stage(account: Account) -> None:
        found = message(sent.TransitionModelVersionStage)
        if found.archive_existing_versions:
            _need(account, "archiving other versions is for the account of `decide`", PROMOTERS)
        may_move_stage(account, found.stage, frozenset(_version(found.name, found.version).aliases))

    def makers(account: Account) -> None:
        _need(account, "this is for those who train", *MAKERS)

    def admins(account: Account) -> None:
        _need(account, "what was registered stays: deleting and renaming is for admins")

    rules: dict[type[Any], Callable[[Account], None]] = {
        sent.SetModelVersionTag: set_tag,
        sent.DeleteModelVersionTag: delete_tag,
        sent.CreateModelVersion: create_version,
        sent.UpdateModelVersion: makers,
        sent.TransitionModelVersionStage: move_stage,
        sent.SetRegisteredModelAlias: lambda one: may_move_alias(one, message(sent.SetRegisteredModelAlias).alias),
        sent.DeleteRegisteredModelAlias: lambda one: may_move_alias(
            one, message(sent.DeleteRegisteredModelAlias).alias
        ),
        sent.SetRegisteredModelTag: lambda one: may_tag_model(one, message(sent.SetRegisteredModelTag).key, False),
        sent.DeleteRegisteredModelTag: lambda one: may_tag_model(one, message(sent.DeleteRegisteredModelTag).key, True),
        sent.CreateRegisteredModel: makers,
        sent.UpdateRegisteredModel: makers,
        sent.RenameRegisteredModel: admins,
        sent.DeleteRegisteredModel: admins,
        sent.DeleteModelVersion: admins,
        tracking.CreateExperiment: makers,
        tracking.DeleteExperiment: admins,  # MLflow lets whoever made one: a version's evidence lies there
        tracking.DeleteRun: admins,
    }
    return {handlers.HANDLERS[kind].__name__: rule for kind, rule in rules.items()}


def _version(name: str, number: str) -> ModelVersion:
    found: ModelVersion = _store().get_model_version(name, number)
    return found


def _stamp(name: str, number: str, key: str, value: str) -> None:
    from mlflow.entities.model_registry import ModelVersionTag

    _store().set_model_version_tag(name, number, ModelVersionTag(key, value))  # type: ignore[no-untyped-call]


def _store() -> Any:
    from mlflow.server.handlers import _get_model_registry_store

    return _get_model_registry_store()


def _after(response: Response) -> Response:
    """Say on a new version who registered it; forget who approved the versions of a model that is deleted."""
    from flask import g, request
    from mlflow.protos.model_registry_pb2 import CreateModelVersion, DeleteRegisteredModel
    from mlflow.server import handlers

    if response.status_code != 200:
        return response
    if request.endpoint == handlers.HANDLERS[CreateModelVersion].__name__:
        made = response.get_json()["model_version"]
        _stamp(made["name"], made["version"], "trained_by", g.mlflow_authenticated_user)
    if request.endpoint == handlers.HANDLERS[DeleteRegisteredModel].__name__:
        deleted = handlers._get_request_message(DeleteRegisteredModel())  # type: ignore[no-untyped-call]
        with _transaction() as run:
            run("DELETE FROM ecg_approvals WHERE model = :model", model=deleted.name)
    return response


def _guard_native_routes(app: FastAPI) -> None:
    """Readers only read, also where FastAPI answers instead of Flask (artifacts, traces, gateway)."""
    from mlflow.server import auth
    from mlflow.server.asgi_utils import get_routed_asgi_path
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import JSONResponse

    native = auth._native_fastapi_routes(app)

    async def readers_only_read(request: Any, call_next: Callable[[Any], Any]) -> Any:
        path = get_routed_asgi_path(request)
        if (
            request.method in ("GET", "HEAD", "OPTIONS")
            or path.endswith("/search")
            or not auth._scope_matches_native_route(native, request.scope)
        ):
            return await call_next(request)
        user = await run_in_threadpool(auth._authenticate_fastapi_request, request)
        if user is not None and not (await run_in_threadpool(_account, user.username)).writes:
            reason = {"error_code": "PERMISSION_DENIED", "message": "ecg: readers only read"}
            return JSONResponse(reason, 403)
        return await call_next(request)

    app.middleware("http")(readers_only_read)


@contextmanager
def _transaction() -> Iterator[Callable[..., Any]]:
    """One transaction in the database of accounts: `run(sql, **values)`."""
    import sqlalchemy
    from mlflow.server.auth import store

    with store.engine.begin() as connection:
        yield lambda text, **values: connection.execute(sqlalchemy.text(text), values)


def _make_tables() -> None:
    with _transaction() as run:
        run(
            "CREATE TABLE IF NOT EXISTS ecg_leases"
            " (model VARCHAR(100) PRIMARY KEY, holder VARCHAR(400) NOT NULL, expires DOUBLE PRECISION NOT NULL)"
        )
        run(
            "CREATE TABLE IF NOT EXISTS ecg_approvals (model VARCHAR(256) NOT NULL, version INTEGER NOT NULL,"
            " account VARCHAR(256) NOT NULL, word VARCHAR(20) NOT NULL, decided DOUBLE PRECISION NOT NULL,"
            " PRIMARY KEY (model, version, account, word))"
        )


def _record(model: str, version: str, account: str, word: str) -> None:
    """Write down who decided what: `decide` believes no approval that is not here (components.registry.server)."""
    with _transaction() as run:
        run(
            "INSERT INTO ecg_approvals VALUES (:model, :version, :account, :word, :now) ON CONFLICT DO NOTHING",
            model=model, version=int(version), account=account, word=word, now=time.time(),
        )  # fmt: skip


def _approvals() -> Response:
    """?name=MODEL&version=N -> the accounts that approved that version, as this server saw them log in."""
    from flask import jsonify, make_response, request

    model, version = request.args.get("name", ""), request.args.get("version", "")
    if not (MODEL_NAME.fullmatch(model) and version.isascii() and version.isdigit() and len(version) < 10):
        return make_response(jsonify({"message": "expected name and version"}), 400)
    with _transaction() as run:
        found = run(
            "SELECT account, decided FROM ecg_approvals"
            " WHERE model = :model AND version = :version AND word = :word ORDER BY decided",
            model=model, version=int(version), word=APPROVED,
        ).all()  # fmt: skip
    return make_response(jsonify({"approvals": [{"account": name, "decided": when} for name, when in found]}), 200)


def _take_lease(model: str, holder: str) -> bool:
    """Take or renew in one statement, so that of two takers one gets it. An expired lease may be taken over."""
    now = time.time()
    with _transaction() as run:
        done = run(
            "INSERT INTO ecg_leases (model, holder, expires) VALUES (:model, :holder, :until)"
            " ON CONFLICT (model) DO UPDATE SET holder = excluded.holder, expires = excluded.expires"
            " WHERE ecg_leases.expires <= :now OR ecg_leases.holder = excluded.holder",
            model=model, holder=holder, until=now + LEASE_SECONDS, now=now,
        )  # fmt: skip
        return bool(done.rowcount == 1)


def _lease() -> Response:
    """{model, holder, release} -> 200 with the seconds it holds, or 409 with the name of who has it."""
    from flask import g, jsonify, make_response, request

    asked = request.get_json(silent=True)
    asked = asked if isinstance(asked, dict) else {}
    model, holder = str(asked.get("model", "")), str(asked.get("holder", ""))
    if not (MODEL_NAME.fullmatch(model) and HOLDER.fullmatch(holder)):
        return make_response(jsonify({"message": "expected model and holder"}), 400)
    who = g.mlflow_authenticated_user
    mine = f"{who}/{holder}"
    if asked.get("release"):
        with _transaction() as run:
            run("DELETE FROM ecg_leases WHERE model = :model AND holder = :holder", model=model, holder=mine)
        return make_response(jsonify({}), 200)
    if _take_lease(model, mine):
        return make_response(jsonify({"seconds": LEASE_SECONDS}), 200)
    with _transaction() as run:
        held = run("SELECT holder FROM ecg_leases WHERE model = :model", model=model).scalar()
    return make_response(jsonify({"message": f"held by {str(held or 'somebody').rpartition('/')[0]}"}), 409)
