"""`ecg serve`: champion and challenger on one base in memory, MLflow's scoring app and a web page, in one process."""

from __future__ import annotations

import socket
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.params import Params, UserError, nearest
from flows.report import Document

if TYPE_CHECKING:
    from components.registry.versions import Version

LOOPBACK = "127.0.0.1"
USUAL_PORT = 5001
EVERYWHERE = ("0.0.0.0", "::")
FOLLOW_SECONDS = 30.0  # between looks at who is champion


class Desk:
    """What is served: the versions that bear some aliases, as they stand in the registry now and later."""

    def __init__(self, params: Params, aliases: Sequence[str], pages: Path | None) -> None:
        """Load the first of `aliases`, and those of the others that a version bears.

        Args:
            params: the recipe, whose model is served.
            aliases: names of adapters in a request; the first answers where none is named.
            pages: paths of pages in requests lead below it; None: paths are not followed.

        Raises:
            UserError: no version bears the first alias, or its files are not what was registered and signed.
        """
        if pages is not None and not pages.is_dir():
            raise UserError(f"--pages: found '{pages}', expected a folder")
        self._params, self._aliases = params, tuple(dict.fromkeys(aliases))
        self._served: dict[str, Version] = {}
        self._refused: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        with ExitStack() as opened:
            found = self._find()
            if self._aliases[0] not in found:
                raise UserError(_nobody(params.registry.model, self._aliases[0], found))
            first = {self._aliases[0]: opened.enter_context(_files(params, found[self._aliases[0]]))}
            self.model = _load(params, first, found, pages)
            self._served[self._aliases[0]] = found[self._aliases[0]]
        self._reader: Any = self.model.unwrap_python_model()
        self._reader.on_refused = self._note_refusal
        self.follow()

    def adapters(self) -> list[Document]:
        """name, version, base, stage and approval of each, the one first that answers where none is named."""
        return [
            {"name": alias, "version": _name(one), "base": one.base, "stage": one.stage, "approval": one.approval}
            for alias, one in ((alias, self._served[alias]) for alias in self._aliases if alias in self._served)
        ]

    def follow(self) -> None:
        """Serve what bears the aliases now. What cannot be loaded is told, and what was served before goes on."""
        try:
            found = self._find()
        except UserError as error:
            _say(f"the registry cannot be read, the same versions go on answering: {error}")
            return
        for alias in self._aliases:
            version, served = found.get(alias), self._served.get(alias)
            if version is None:
                # The first goes on answering: a request that names nobody must find somebody.
                if served is not None and alias != self._aliases[0]:
                    self._served = {key: one for key, one in self._served.items() if key != alias}
                    self._reader.drop(alias)
                    _say(f"{alias}: no version any more")
            elif served is None or served.number != version.number:
                self._take(alias, version)
            else:
                self._served = {**self._served, alias: version}  # stage and approval may have changed

    def run(self, listener: socket.socket, hosts: Sequence[str]) -> None:
        """Answer on `listener` until a signal."""
        import logging

        import uvicorn

        from flows.server import build_app

        logging.getLogger("mlflow.models.utils").setLevel(logging.ERROR)  # it logs names that requests made up
        app: Any = build_app(self.model, self.adapters, hosts)
        config = uvicorn.Config(app, log_level="warning", server_header=False, limit_concurrency=64, lifespan="off")
        follower = threading.Thread(target=self._follow_on, daemon=True)
        follower.start()
        try:
            uvicorn.Server(config).run(sockets=[listener])
        finally:
            self._stop.set()
            follower.join()
            self.record_refusals()

    def record_refusals(self) -> None:
        """Put the kinds of pages refused since the last call into the ledger, one entry each, with how many.

        No name, no picture, no text: only the kind. The same kind again, with nothing in between, is no new entry.
        """
        from components.registry.ledger import open_ledger, refuse
        from components.registry.store import opened

        with self._lock:
            refused, self._refused = self._refused, Counter()
        if not refused:
            return
        version = self._served[self._aliases[0]].number
        try:
            with opened(self._params.registry) as client:
                book = open_ledger(client, self._params.registry)
                for kind, count in sorted(refused.items()):
                    why = f"a page sent to be read was refused: {kind}"
                    refuse(book, version, who="ecg serve", why=why, details={"kind": kind, "count": count})
        except UserError as error:
            with self._lock:
                self._refused.update(refused)  # for the next time
            _say(f"the ledger cannot be written: {error}")

    def _take(self, alias: str, version: Version) -> None:
        from components.registry.files import ADAPTER

        try:
            with _files(self._params, version) as folder:
                self._reader.put(alias, folder / ADAPTER, _name(version))
        except UserError as error:
            _say(f"{alias}: {version} is not served: {error}")
            return
        self._served = {**self._served, alias: version}
        _say(f"{alias}: {version} answers now")

    def _find(self) -> dict[str, Version]:
        from components.registry.store import connect
        from components.registry.versions import read_aliases, read_versions

        client, model = connect(self._params.registry), self._params.registry.model
        versions = {version.number: version for version in read_versions(client, model)}
        aliases = read_aliases(client, model)
        return {alias: versions[number] for alias, number in aliases.items() if number in versions}

    def _follow_on(self) -> None:
        while not self._stop.wait(FOLLOW_SECONDS):
            try:
                self.follow()
                self.record_refusals()
            except Exception as error:  # a thread that dies would leave yesterday's champion serving in silence
                _say(f"following the registry failed, and is tried again: {type(error).__name__}: {error}")

    def _note_refusal(self, kind: str) -> None:
        with self._lock:
            self._refused[kind] += 1


def listen(host: str, port: int | None) -> socket.socket:
    """A socket that listens on `port`, or on 5001 or a free one.

    Raises:
        UserError: the port is taken, or `host` is no address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in (port,) if port is not None else (USUAL_PORT, 0):
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, candidate))
            listener.listen(64)
            return listener
        except OSError as error:
            listener.close()
            reason = error.strerror
    raise UserError(f"--host {host} --port {port}: cannot be listened on ({reason}); name others")


def address(host: str, listener: socket.socket, desk: Desk) -> Document:
    """What `ecg serve` answers: url, adapters, and the notice."""
    from components.reading.interpretation import NOTICE

    shown = "localhost" if host in EVERYWHERE else f"[{host}]" if ":" in host else host
    return {"url": f"http://{shown}:{listener.getsockname()[1]}", "adapters": desk.adapters(), "notice": NOTICE}


def names_of(host: str, allowed: Sequence[str]) -> list[str]:
    """The names under which requests may address the server; on every address of the machine those of `allowed`."""
    own = ["localhost", LOOPBACK, "[::1]"]
    if host in EVERYWHERE:
        return [*own, socket.gethostname(), socket.getfqdn(), *allowed]
    return [*own, f"[{host}]" if ":" in host else host, *allowed]


def _load(params: Params, folders: dict[str, Path], found: dict[str, Version], pages: Path | None) -> Any:
    """The reader as MLflow loads one, on adapters that lie where the registry has them."""
    import tempfile

    import mlflow

    from components.reading import pyfunc
    from components.registry.files import ADAPTER

    config = pyfunc.model_config(params)
    config["pages_folder"] = None if pages is None else str(pages.resolve())
    config["adapters"] = {
        alias: {"folder": str((folder / ADAPTER).absolute()), "version": _name(found[alias])}
        for alias, folder in folders.items()
    }
    with tempfile.TemporaryDirectory(prefix="ecg-serve-") as temporary:
        folder = Path(temporary) / "model"
        mlflow.pyfunc.save_model(
            folder,
            python_model=pyfunc.__file__,
            model_config=config,
            signature=pyfunc.signature(),
            pip_requirements=[],
        )
        return mlflow.pyfunc.load_model(str(folder))


def _files(params: Params, version: Version) -> Any:
    from components.registry.files import verified
    from components.registry.signing import signature_policy

    return verified(version, signature_policy(params))


def _name(version: Version) -> str:
    return f"{version.model}/{version.number}"


def _nobody(model: str, alias: str, found: dict[str, Version]) -> str:
    others = ", ".join(sorted(found))
    if not others:
        return f"'{model}' has no {alias}: no version bears an alias; approve one (ecg status), then: ecg decide"
    return (
        f"'{model}' has no version called '{alias}'{nearest(alias, found)}; approve one and run ecg decide, or serve "
        f"another: ecg serve --alias NAME, of {others}"
    )


def _say(text: str) -> None:
    print(f"ecg serve: {text}", file=sys.stderr, flush=True)
