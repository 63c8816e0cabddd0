"""Verbs in processes of their own that die by SIGKILL at a random write, on a real MLflow store and a real ledger.

    python tests/registry/killed_process.py FOLDER PARAMS ROUNDS SEED

FOLDER holds the states that conftest.py keeps. This process never opens the store: every step is a fork of it, so
that each has its own connections and a killed one takes nothing with it but itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow  # noqa: F401  a fork of this process need not import it again
from fast_store import Doomed, Fate
from registry_project import Store, aliases_of, stages_of

from components.params import Params, UserError, parse_params
from components.registry import store as store_module
from components.registry.approve import approve, reject
from components.registry.champion import APPLIED
from components.registry.ledger import PROMOTED, ROLLED_BACK, open_ledger
from components.registry.promote import decide
from components.registry.rollback import rollback
from components.registry.state import fold
from components.registry.store import connect

KILLED = -signal.SIGKILL


def in_fork(work: Callable[[], object]) -> int:
    """Do `work` in a fork; its exit code, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except UserError as error:
            print(f"refused: {error}", file=sys.stderr)
            code = 2
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def doomed(work: Callable[[], object], left: int, after: bool) -> None:
    """`work`, in a process that dies at its write number `left`: MLflow's, or a step of writing an entry."""
    fate = Fate(left=left, after=after, die=lambda: os.kill(os.getpid(), signal.SIGKILL))
    real = store_module.connect
    store_module.connect = lambda registry: Doomed(real(registry), fate)  # type: ignore[assignment,return-value]
    for name in ("fsync", "link"):
        call = getattr(os, name)
        setattr(os, name, lambda *given, call=call: fate.passes(lambda: call(*given)))
    work()


def type_approval(params: Params) -> None:
    client = connect(params.registry)
    for name, value in (("approved_by", "Grace"), ("approval", "approved")):
        client.set_model_version_tag(params.registry.model, "2", name, value)


def check(params: Params, settled: bool) -> None:
    """The promises, right after the kill or after the next `decide`."""
    book = open_ledger(connect(params.registry), params.registry)
    assert book.findings() == []
    entries = book.entries()
    assert len({entry.key for entry in entries}) == len(entries)
    state = fold(entries)
    holder = aliases_of(params)["champion"]
    standing = state.versions[holder]
    assert (standing.gate, standing.approval) == ("passed", "approved")
    for event in (PROMOTED, ROLLED_BACK):
        counts = Counter((entry.version, entry.why) for entry in entries if entry.event == event)
        assert all(count == 1 for count in counts.values()), counts
    if settled:
        tags = connect(params.registry).get_registered_model(params.registry.model).tags
        assert tags[APPLIED] == str(len(entries))
        assert holder == state.champion
        assert [number for number, stage in stages_of(params).items() if stage == "Production"] == [holder]
        assert not any(one.fresh for one in decide(params))


def main() -> None:
    folder, rounds, draw = Path(sys.argv[1]), int(sys.argv[3]), random.Random(int(sys.argv[4]))
    params = parse_params(json.loads(Path(sys.argv[2]).read_text()))
    store = Store(params, folder / "mlruns", folder)
    verbs: dict[str, tuple[list[Callable[[], Any]], Callable[[], Any]]] = {
        "approve": ([], lambda: approve(params, 2, "Grace")),
        "reject": ([], lambda: reject(params, 2, "Grace")),
        "promote": ([lambda: approve(params, 2, "Grace")], lambda: decide(params)),
        "typed": ([lambda: type_approval(params)], lambda: decide(params)),
        "rollback": (
            [lambda: approve(params, 2, "Grace"), lambda: decide(params)],
            lambda: rollback(params, "alarms", "Grace"),
        ),
    }
    counts: Counter[str] = Counter()
    for number in range(rounds):
        name = list(verbs)[number % len(verbs)]
        before, verb = verbs[name]
        store.set_back("challenger")
        for step in before:
            assert in_fork(step) == 0
        left, after = draw.randrange(14 if name in ("approve", "reject") else 26), draw.random() < 0.5
        code = in_fork(lambda verb=verb, left=left, after=after: doomed(verb, left, after))
        assert code in (0, KILLED), f"{name} at {left}: {code}"
        counts[f"{name} {'killed' if code == KILLED else 'finished'}"] += 1
        steps: list[Callable[[], Any]] = [lambda: check(params, settled=False)]
        if draw.random() < 0.5 and name != "rollback":
            steps.append(verb)  # the same again
        steps += [lambda: decide(params), lambda: check(params, settled=True)]
        for step in steps:
            assert in_fork(step) == 0, f"round {number}: {name} at {left} {after}"
    print(json.dumps(counts))


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
