"""ecg: the command line. Tables for people; with --json one JSON document on standard output.

Exit codes: 0 finished, whatever the verdict; 1 failed; 2 something for the user to mend; 3 the verdict
was not the one that --fail-on-… asks for; 130 interrupted. Heavy imports wait inside the commands.
"""

from __future__ import annotations

import dataclasses
import getpass
import json
import os
import shlex
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from components.params import UserError

Document = dict[str, Any]

app = typer.Typer(
    name="ecg",
    help="Retrain, examine, approve and promote adapters that read ECG pages. Not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, nothing else there.")]
Version = Annotated[int, typer.Argument(metavar="VERSION", help="A version's number; see `ecg status`.")]
By = Annotated[str, typer.Option("--by", metavar="NAME", help="Who decides.")]
Note = Annotated[str | None, typer.Option("--note", metavar="TEXT", help="Why, kept with the version.")]


@app.command()
def retrain(
    recipe: Annotated[
        str | None, typer.Option(metavar="NAME", help="Put this recipe in force first; see `ecg recipes`.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key of params.yaml first; may be repeated."),
    ] = None,
    fail_on_reject: Annotated[
        bool, typer.Option("--fail-on-reject", help="Exit with 3 when the gate stays closed.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Bring the pipeline up to date, register the adapter and gate it."""

    def work() -> Document:
        from flows import preflight, recipes, show
        from flows.project import alone, quiet_prefect

        chosen = recipes.resolve(recipe, overrides or [])
        preflight.check(chosen.params)
        with alone():
            show.changes(chosen.changes)
            chosen.put_in_force()
            done = preflight.nothing_to_do(chosen.params)
            if done is not None:
                return done
            quiet_prefect()
            from flows.retrain import retrain as flow

            return flow()

    def tell(report: Document) -> None:
        from flows import show

        show.report(report)

    report = _answer(as_json, work, tell)
    if fail_on_reject and report["gate"] != "passed":
        raise typer.Exit(3)


@app.command()
def simulate(
    add: Annotated[int, typer.Option("--add", metavar="N", min=1, help="So many new patients.")],
    as_json: Json = False,
) -> None:
    """Let new patients arrive at the simulated hospital; the next retraining takes them in."""

    def work() -> Document:
        from components.params import load_params
        from components.records.simulator import add_batch

        records = load_params().records
        if records.source != "simulator":
            raise UserError(
                f"records.source: found '{records.source}', expected 'simulator': patients arrive only at the "
                "simulated hospital; put it in force with `ecg retrain --recipe ecg-tiny`"
            )
        path = Path(records.source_dir) / "cohort.yaml"
        cohort = add_batch(path, add)
        return {"cohort": str(path), "hospital": cohort.hospital, "added": add, "patients": cohort.patients}

    def tell(answer: Document) -> None:
        print(
            f"{answer['added']} patients arrived at {answer['hospital']}: {answer['patients']} now "
            f"({answer['cohort']}).\nTake them in: ecg retrain"
        )

    _answer(as_json, work, tell)


@app.command()
def status(as_json: Json = False) -> None:
    """Show the recipe in force, what a retraining would do, and every registered version."""

    def work() -> Document:
        from components.params import load_params
        from components.registry.versions import status as versions
        from flows.stage import changed_stages

        params = load_params()
        rows = [dataclasses.asdict(row) for row in versions(params)]
        return {
            "recipe": params.recipe,
            "model": params.registry.model,
            "changed_stages": changed_stages(),
            "versions": [{**row, "created": row["created"].isoformat(timespec="seconds")} for row in rows],
        }

    def tell(answer: Document) -> None:
        from flows import show

        show.status(answer)

    _answer(as_json, work, tell)


@app.command()
def drift(
    new: Annotated[
        Path | None,
        typer.Option("--new", metavar="FOLDER", help="Like the source, or a record store; default: the source."),
    ] = None,
    fail_on_drift: Annotated[bool, typer.Option("--fail-on-drift", help="Exit with 3 when drift is found.")] = False,
    as_json: Json = False,
) -> None:
    """Compare the records that arrived with the training data; drift asks for a retraining."""
    folder = None if new is None else str(new.absolute())  # seen from where the user stands

    def work() -> Document:
        from flows.project import alone, quiet_prefect

        with alone():
            quiet_prefect()
            from flows.drift import drift as flow

            return flow(folder)

    def tell(answer: Document) -> None:
        from flows import show

        show.drift(answer)

    if _answer(as_json, work, tell)["verdict"] == "drift" and fail_on_drift:
        raise typer.Exit(3)


@app.command()
def gate(
    version: Version,
    fail_on_reject: Annotated[
        bool, typer.Option("--fail-on-reject", help="Exit with 3 when the gate stays closed.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run the gate on a version, or tell what it said where nothing has changed since."""

    def work() -> Document:
        from components.params import load_params
        from components.registry.gate import gate_version
        from flows.report import judged

        params = load_params()
        return judged(params, version, gate_version(params, version, Path.cwd()))

    def tell(answer: Document) -> None:
        from flows import show

        show.gate(answer)

    answer = _answer(as_json, work, tell)
    if fail_on_reject and answer["gate"] != "passed":
        raise typer.Exit(3)


@app.command()
def approve(version: Version, by: By, note: Note = None, as_json: Json = False) -> None:
    """Approve a version that passed the gate; `ecg decide` then promotes it."""
    _decision(version, by, note, as_json, "approve", "approved; promote it with: ecg decide")


@app.command()
def reject(version: Version, by: By, note: Note = None, as_json: Json = False) -> None:
    """Reject a version that passed the gate."""
    _decision(version, by, note, as_json, "reject", "rejected; it will not be promoted")


@app.command()
def decide(as_json: Json = False) -> None:
    """Promote every approved version that still holds what the gate asked for."""

    def work() -> Document:
        from components.params import load_params
        from components.registry.promote import decide as decide_versions

        params = load_params()
        decisions = decide_versions(params, Path.cwd())
        return {"model": params.registry.model, "decisions": [dataclasses.asdict(one) for one in decisions]}

    def tell(answer: Document) -> None:
        if not answer["decisions"]:
            print("No approved version is waiting.")
        for one in answer["decisions"]:
            which = "" if one["version"] is None else f" version {one['version']}"
            print(f"{answer['model']}{which}: {one['action']}: {one['reason']}")

    _answer(as_json, work, tell)


@app.command()
def review(
    version: Version,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where the page goes; default: reports/review/VERSION.html.")
    ] = None,
    browser: Annotated[bool, typer.Option("--open/--no-open", help="Open it in the browser.")] = True,
    as_json: Json = False,
) -> None:
    """Fetch a version's review page: verdict, numbers side by side, the pages on which it differs from the champion."""
    target = out.absolute() if out else None  # seen from where the user stands

    def work() -> Document:
        from components.params import load_params
        from components.registry.review import fetch_review

        params = load_params()
        page = fetch_review(params, version, target or Path("reports/review") / f"{version}.html")
        return {"model": params.registry.model, "version": version, "page": str(page.absolute())}

    def tell(answer: Document) -> None:
        import webbrowser

        print(answer["page"], flush=True)
        if browser and sys.stdout.isatty():
            webbrowser.open(Path(answer["page"]).as_uri())

    _answer(as_json, work, tell)


@app.command()
def rollback(
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why, kept with the version left.")],
    by: Annotated[str | None, typer.Option("--by", metavar="NAME", help="Who decides; default: your login.")] = None,
    to: Annotated[
        int | None, typer.Option("--to", metavar="VERSION", help="A former champion; default: the previous one.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make the previous champion champion again."""

    def work() -> Document:
        from components.params import load_params
        from components.registry.rollback import rollback as roll_back

        params = load_params()
        move = roll_back(params, reason, by or getpass.getuser(), to)
        return {"model": params.registry.model, **dataclasses.asdict(move)}

    def tell(move: Document) -> None:
        print(f"{move['model']}: version {move['to']} is champion again, instead of {move['since']}.")

    _answer(as_json, work, tell)


@app.command()
def keys(
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Private key; the public one is FILE.pub.")] = Path(
        "~/.config/ecg-adapters/signing.key"
    ),
    as_json: Json = False,
) -> None:
    """Make a key pair to sign versions with, outside the repository."""
    private = out.expanduser().absolute()  # seen from where the user stands

    def work() -> Document:
        from components.models.signatures import make_keys

        public, fingerprint = make_keys(private)
        return {"private": str(private), "public": str(public), "fingerprint": fingerprint}

    def tell(answer: Document) -> None:
        print(
            f"Private key: {answer['private']}. Keep it: whoever has it signs in your name.\n"
            f"Public key:  {answer['public']}, fingerprint {answer['fingerprint']}\n"
            f"Sign what is registered:  export ECG_SIGNING_KEY={answer['private']}\n"
            "Trust it:  put the public key into the project, and name it in params.yaml under signing.trusted"
        )

    _answer(as_json, work, tell)


@app.command()
def sign(
    version: Version,
    by: Annotated[str | None, typer.Option("--by", metavar="NAME", help="Who signs; default: your login.")] = None,
    as_json: Json = False,
) -> None:
    """Sign a version that is registered already, with the configured key."""

    def work() -> Document:
        from components.params import load_params
        from components.registry.sign import sign as sign_version

        params = load_params()
        name = sign_version(params, version, by or getpass.getuser())
        return {"model": params.registry.model, "version": version, "signed_by": name}

    def tell(answer: Document) -> None:
        print(f"{answer['model']} version {answer['version']} is signed by the key {answer['signed_by']}")

    _answer(as_json, work, tell)


@app.command()
def reproduce(
    version: Version,
    by: Annotated[str | None, typer.Option("--by", metavar="NAME", help="Who asks; default: your login.")] = None,
    into: Annotated[
        Path | None,
        typer.Option("--into", metavar="DIR", help="The clone's folder, which stays; the same again goes on in it."),
    ] = None,
    from_source: Annotated[
        bool,
        typer.Option("--from-source", help="Rebuild the data too, instead of pulling what the version's lock names."),
    ] = False,
    fail_on_difference: Annotated[
        bool, typer.Option("--fail-on-difference", help="Exit with 3 when it is neither identical nor equivalent.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a version again from its own commit, in a clone, and say whether it is the same."""
    folder = None if into is None else into.absolute()  # seen from where the user stands

    def work() -> Document:
        from components.params import load_params
        from flows.reproduce import reproduce as run

        return run(load_params(), version, by or getpass.getuser(), folder, from_source)

    def tell(answer: Document) -> None:
        from flows import show

        show.reproduction(answer)

    if _answer(as_json, work, tell)["outcome"] == "different" and fail_on_difference:
        raise typer.Exit(3)


@app.command()
def history(
    version: Annotated[
        int | None, typer.Argument(metavar="VERSION", help="Only what concerns this version; default: all.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every entry anew and exit with 1 if one was changed or is missing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show the ledger: who registered, gated, approved, promoted, rolled back or was refused, when and why."""

    def work() -> Document:
        from components.params import load_params
        from components.registry.history import history as entries
        from components.registry.history import verify as findings

        params = load_params()
        answer: Document = {"model": params.registry.model, "ledger": params.registry.ledger}
        if verify:
            answer["findings"] = findings(params)
        if not answer.get("findings"):
            answer["entries"] = [dataclasses.asdict(entry) for entry in entries(params, version)]
        return answer

    def tell(answer: Document) -> None:
        from flows import show

        show.history(answer)

    if _answer(as_json, work, tell).get("findings"):
        raise typer.Exit(1)


@app.command()
def deploy(
    repository: Annotated[
        str | None, typer.Option(metavar="URL", help="What workers clone; default: this clone's origin, or its folder.")
    ] = None,
    branch: Annotated[str | None, typer.Option(metavar="NAME", help="Default: the one checked out here.")] = None,
    cpu: Annotated[str, typer.Option(metavar="KIND", help="Of the pool cpu: a template of infra/pools.")] = "process",
    gpu: Annotated[str, typer.Option(metavar="KIND", help="Of the pool gpu: a template of infra/pools.")] = "process",
    as_json: Json = False,
) -> None:
    """Set up a team's Prefect server: pools, deployments, and the automations that find runs whose machine died."""

    def work() -> Document:
        from flows.deploy import deploy as set_up

        return set_up(repository, branch, cpu, gpu)

    def tell(answer: Document) -> None:
        where = answer["variables"]
        print(f"Workers clone {where['ecg_repository']}, branch {where['ecg_branch']}.")
        for name, kind in answer["pools"].items():
            print(f"Pool '{name}' ({kind}); a worker for it: prefect worker start --pool {name}")
        for name in answer["automations"]:
            print(f"Automation: {name}")

    _answer(as_json, work, tell)


@app.command()
def clean(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list; nothing is changed.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove what is listed without asking.")] = False,
    remote: Annotated[
        bool, typer.Option("--remote", help="DVC's default remote too, after asking git's remotes what they name.")
    ] = False,
    by: Annotated[str | None, typer.Option("--by", metavar="NAME", help="Who removes; default: your login.")] = None,
    as_json: Json = False,
) -> None:
    """List data, checkpoints, runs and versions that no kept version needs, and remove them."""
    shown: list[Document] = []

    def agree(found: Document) -> bool:
        if dry_run or yes:
            return yes and not dry_run
        if as_json or not sys.stdin.isatty():
            return False
        from flows import show

        shown.append(found)
        show.retention(found)
        return typer.confirm("Remove these?", default=False)

    def work() -> Document:
        from components.params import load_params
        from flows.clean import clean as run

        return run(load_params(), agree, by=by, with_remote=remote)

    def tell(answer: Document) -> None:
        from flows import show

        if not shown:
            show.retention(answer)
        if answer["agreed"]:
            show.cleaned(answer)
        elif answer["going"]:
            show.say("Nothing was changed. To remove it: ecg clean --yes")

    if _answer(as_json, work, tell)["failed"]:
        raise typer.Exit(1)


@app.command("recipes")
def list_recipes(
    use: Annotated[str | None, typer.Option(metavar="NAME", help="Put this recipe in force and run nothing.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key of params.yaml too; may be repeated."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the recipes that `ecg retrain --recipe` knows, or put one in force."""

    def work() -> Document:
        from components.params import load_params
        from flows import recipes, show
        from flows.project import alone

        if use is not None or overrides:
            chosen = recipes.resolve(use, overrides or [])
            with alone():
                show.changes(chosen.changes)
                chosen.put_in_force()
        found = [dataclasses.asdict(recipe) for recipe in recipes.list_recipes()]
        return {"in_force": load_params().recipe, "recipes": found}

    def tell(answer: Document) -> None:
        from flows import show

        show.recipes(answer)

    _answer(as_json, work, tell)


@app.command()
def ablate(
    method: Annotated[str, typer.Option(metavar="NAME,…", help="Of lora, qlora, partial, full.")] = "lora",
    rank: Annotated[str | None, typer.Option(metavar="N,…", help="Ranks, for lora and qlora.")] = None,
    seed: Annotated[str | None, typer.Option(metavar="N,…", help="Seeds; default: the recipe's.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A key of train.* for all of them; may be repeated."),
    ] = None,
    exam: Annotated[str | None, typer.Option(metavar="NAME", help="Exam compared; default: the gate's.")] = None,
    metric: Annotated[str | None, typer.Option(metavar="NAME", help="Metric compared; default: the gate's.")] = None,
    as_json: Json = False,
) -> None:
    """Compare methods, ranks and seeds, one DVC experiment each; a second call goes on where the first ended."""

    def work() -> Document:
        from flows.ablate import ablate as run

        ranks, seeds = _numbers("--rank", rank), _numbers("--seed", seed)
        return run([one for one in method.split(",") if one], ranks or [], seeds, overrides or [], exam, metric)

    def tell(answer: Document) -> None:
        from flows import show

        show.ablation(answer)

    if _answer(as_json, work, tell)["failed"]:
        raise typer.Exit(1)


@app.command()
def export(
    which: Annotated[str, typer.Argument(metavar="VERSION|FOLDER", help="A version's number, or an adapter's folder.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the merged model goes.")],
    dtype: Annotated[str, typer.Option(metavar="NAME", help="float32, bfloat16 or float16.")] = "float32",
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export there.")] = False,
    as_json: Json = False,
) -> None:
    """Merge an adapter into its base: a Hugging Face folder that transformers loads without this project."""
    folder, target = Path(which).absolute(), out.absolute()  # seen from where the user stands

    def work() -> Document:
        from components.params import load_params
        from flows.export import export as run

        return run(load_params(), which, folder, target, dtype, force)

    def tell(answer: Document) -> None:
        from flows import show

        show.exported(answer)

    _answer(as_json, work, tell)


@app.command()
def doctor(
    recipe: Annotated[
        str | None, typer.Option("--recipe", metavar="NAME", help="This recipe; default: the one in force.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="With this key changed; may be repeated.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="NAME", help="Plan for this accelerator, as H100; default: here.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a recipe's base, method, memory and disk without weights; exit with 2 if there is to mend."""

    def work() -> Document:
        from flows.doctor import examine

        return examine(recipe, overrides or [], device)

    def tell(answer: Document) -> None:
        from flows import doctor

        doctor.tell(answer)

    if not _answer(as_json, work, tell)["fine"]:
        raise typer.Exit(2)


@app.command()
def interpret(
    page: Annotated[
        Path, typer.Argument(metavar="PAGE", help="A picture of an ECG page (PNG, JPEG …), or a record (.json).")
    ],
    version: Annotated[
        int | None, typer.Option("--version", metavar="VERSION", help="This version; default: the champion.")
    ] = None,
    alias: Annotated[str | None, typer.Option("--alias", metavar="ALIAS", help="The version so named.")] = None,
    question: Annotated[
        str | None, typer.Option("--question", metavar="TEXT", help="Asked of the page; default: for a report.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Let an adapter read one page. No medical advice: a research tool."""
    path = page.absolute()  # seen from where the user stands, before the project's root is entered

    def work() -> Document:
        from components.params import load_params
        from flows.interpret import interpret_page

        return interpret_page(load_params(), path, version, alias, question)

    def tell(answer: Document) -> None:
        from flows import show

        show.interpretation(answer)

    _answer(as_json, work, tell)


@app.command()
def serve(
    port: Annotated[
        int | None, typer.Option("--port", metavar="PORT", help="On this port; default: 5001 or a free one.")
    ] = None,
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="On this address. Anyone who reaches it may ask.")
    ] = "127.0.0.1",
    names: Annotated[
        list[str] | None,
        typer.Option("--name", metavar="NAME", help="Requests may call the server so too; may be repeated."),
    ] = None,
    aliases: Annotated[
        list[str] | None,
        typer.Option("--alias", metavar="ALIAS", help="Serve these; default: champion, challenger if there is one."),
    ] = None,
    pages: Annotated[
        Path | None, typer.Option("--pages", metavar="DIR", help="Requests may name files below it; default: none.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Serve the champion: MLflow's scoring requests and a web page, until ^C. No medical advice: a research tool."""
    folder = None if pages is None else pages.absolute()
    opened: list[Any] = []

    def work() -> Document:
        from components.params import load_params
        from flows import serve

        listener = serve.listen(host, port)
        desk = serve.Desk(load_params(), aliases or ["champion", "challenger"], folder)
        opened.extend((desk, listener))
        return serve.address(host, listener, desk)

    def tell(answer: Document) -> None:
        for one in answer["adapters"]:
            print(f"{one['name']}: {one['version']}, {one['stage']}, on base {one['base']}")
        print(f"Page and requests: {answer['url']} (end it with ^C)\n{answer['notice']}", flush=True)

    _answer(as_json, work, tell)
    from flows.serve import names_of

    desk, listener = opened
    desk.run(listener, names_of(host, names or []))


@app.command()
def ui(
    port: Annotated[
        int | None, typer.Option("--port", metavar="PORT", help="On this port; default: 5000 or a free one.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Serve MLflow's pages of runs and versions on this machine until ^C."""
    from flows.ui import serve

    def work() -> Document:
        from components.params import load_params
        from flows.ui import address

        return address(load_params(), port)

    def tell(answer: Document) -> None:
        print(f"MLflow: {answer['url']} (end it with ^C)", flush=True)

    serve(_answer(as_json, work, tell))


@app.command()
def webhook(
    url: Annotated[
        str | None, typer.Option("--url", metavar="URL", help="Subscribe this address at MLflow first (an admin may).")
    ] = None,
    subscribe_only: Annotated[
        bool, typer.Option("--subscribe-only", help="Subscribe --url and serve nothing.")
    ] = False,
    host: Annotated[str, typer.Option("--host", metavar="HOST", help="Listen on this address.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", metavar="PORT", help="Listen on this port.")] = 8190,
    state: Annotated[Path, typer.Option("--state", metavar="FILE", help="Remembers what was delivered.")] = Path(
        "mlruns/webhook.db"
    ),
    as_json: Json = False,
) -> None:
    """Take MLflow's webhook, so that an approval is acted on within seconds; needs ECG_WEBHOOK_SECRET."""
    from flows import webhook as receiver

    def work() -> Document:
        from components.params import load_params

        if subscribe_only and url is None:
            raise UserError("--subscribe-only: found no --url, expected the address that MLflow shall deliver to")
        return receiver.prepare(load_params(), host, port, url)

    def tell(answer: Document) -> None:
        if answer["subscribed"] is not None:
            print(f"MLflow delivers {answer['model']}'s tags to {answer['subscribed']['url']}.", flush=True)
        if not subscribe_only:
            print(f"Deliveries are taken at {answer['listens']} (end it with ^C)", flush=True)

    _answer(as_json, work, tell)
    if not subscribe_only:
        from components.params import load_params

        receiver.serve(load_params(), host, port, state)


team_app = typer.Typer(help="Set up a team's servers once: accounts and buckets (infra/README.md).")
app.add_typer(team_app, name="team", no_args_is_help=True)


@team_app.command()
def account(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The account's name at MLflow.")],
    role: Annotated[list[str], typer.Option(metavar="ROLE", help="readers, trainers, approvers or promoters.")],
    password_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Holds its password; '-': standard input; default: asked for.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make an account, or give one another role; you are logged in as an admin (MLFLOW_TRACKING_USERNAME)."""
    from flows.team import make_account, read_password

    password = read_password(password_file)

    def work() -> Document:
        from components.params import load_params

        return make_account(load_params(), name, role, password)

    def tell(answer: Document) -> None:
        print(f"{answer['account']}: {'made' if answer['created'] else 'was there'}; {', '.join(answer['roles'])}")

    _answer(as_json, work, tell)


@team_app.command()
def bucket(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The bucket's name.")],
    lock_days: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Nothing in it can be changed or deleted for so many days.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a bucket in S3 (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID), with object lock for a ledger."""

    def work() -> Document:
        from flows.team import make_bucket

        return make_bucket(name, lock_days)

    def tell(answer: Document) -> None:
        print(f"{answer['bucket']}: {'made' if answer['created'] else 'was there'}")

    _answer(as_json, work, tell)


@team_app.command()
def remote(
    address: Annotated[str, typer.Argument(metavar="s3://BUCKET/PREFIX", help="Where DVC keeps the data.")],
    replace: Annotated[bool, typer.Option("--replace", help="Leave the default remote that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Try a place in S3, make it DVC's default remote, and say what MLflow's server has to know (docs/storage.md)."""

    def work() -> Document:
        from flows.remote import set_remote

        return set_remote(address, replace)

    def tell(answer: Document) -> None:
        print(f"{answer['address']}: listed, written, read back and deleted; {answer['encryption']}")
        print(f"{answer['config']}: remote '{answer['remote']}' is the default; commit it")
        print("MLflow's server, and a shell for dvc by hand, need:")
        for name, value in answer["environment"].items():
            print(f"  {name}={shlex.quote(value)}")

    _answer(as_json, work, tell)


alerts_app = typer.Typer(help="Who is told of what fails or waits (docs/alerts.md).")
app.add_typer(alerts_app, name="alerts", invoke_without_command=True)


@alerts_app.callback()
def alerts(
    context: typer.Context,
    test: Annotated[bool, typer.Option("--test", help="Send one message through each configured block.")] = False,
    as_json: Json = False,
) -> None:
    """Show what waits for people and who is told; with --test, tell everyone a test message."""
    if context.invoked_subcommand is not None:
        return

    def work() -> Document:
        from components.params import load_params
        from flows.project import quiet_prefect

        quiet_prefect()
        from flows.alerts import show, test_blocks

        return test_blocks(load_params()) if test else show(load_params())

    def tell(answer: Document) -> None:
        from flows import show

        show.alerts(answer)

    if any(one["outcome"] == "failed" for one in _answer(as_json, work, tell)["blocks"]):
        raise typer.Exit(1)


@alerts_app.command("block")
def alerts_block(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="slack, webhook or email.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="The block's name on the Prefect server.")],
    address_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Holds its address; '-': standard input; default: asked for.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Give a block that is there this address.")] = False,
    as_json: Json = False,
) -> None:
    """Make a block that alerts go through; its address, a secret, is kept by Prefect only."""
    from flows.alerts import read_address

    address = read_address(address_file)  # seen from where the user stands

    def work() -> Document:
        from flows.project import quiet_prefect

        quiet_prefect()
        from flows.blocks import keep_block

        return keep_block(kind, name, address, replace)

    def tell(answer: Document) -> None:
        print(
            f"{answer['block']}: {'has a new address' if answer['replaced'] else 'made'}; name it in alerts.blocks of "
            "params.yaml, then: ecg alerts --test"
        )

    _answer(as_json, work, tell)


def main() -> None:
    """The entry point: whatever goes wrong ends in one message and an exit code."""
    from flows.project import quiet_mlflow
    from flows.stage import StageFailed

    quiet_mlflow()
    try:
        code = app(prog_name="ecg", standalone_mode=False)
    except typer.TyperException as error:  # a wrong option or argument
        code = _fail(error.exit_code, f"{error.format_message()} Try 'ecg --help'.")
    except UserError as error:
        code = _fail(2, str(error))
    except StageFailed as error:
        code = _fail(2 if error.users_error else 1, str(error))
    except KeyboardInterrupt:
        code = _fail(130, "interrupted; the same command goes on from here")
    except Exception as error:
        traceback.print_exc()
        code = _fail(1, f"{type(error).__name__}: {error}")
    sys.exit(code or 0)


def _decision(version: int, by: str, note: str | None, as_json: bool, verb: str, outcome: str) -> None:
    def work() -> Document:
        from components.params import load_params
        from components.registry import approve as decisions

        decided = getattr(decisions, verb)(load_params(), version, by, note)
        return {
            "model": decided.model,
            "version": decided.number,
            "approval": decided.approval,
            "approved_by": decided.approved_by,
        }

    def tell(answer: Document) -> None:
        said = "approved by one; it waits for another approval" if answer["approval"] == "pending" else outcome
        print(f"{answer['model']} version {answer['version']}: {said}")

    _answer(as_json, work, tell)


def _numbers(option: str, text: str | None) -> list[int] | None:
    """4,8,16 as numbers."""
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option}: found '{text}', expected whole numbers with commas between, as 4,8,16") from None


def _answer(as_json: bool, work: Callable[[], Document], tell: Callable[[Document], None]) -> Document:
    """Do the work in the project's root, and print its answer as tables or as one JSON document."""
    from flows.project import enter

    if not as_json:
        enter()
        answer = work()
        tell(answer)
        return answer
    # Libraries and child processes write to descriptor 1 as they please: it points to standard error meanwhile.
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        enter()
        answer = work()
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
    print(json.dumps(answer, indent=1, allow_nan=False), flush=True)
    return answer


def _fail(code: int, message: str) -> int:
    if "--json" in sys.argv[1:]:
        print(json.dumps({"status": "error", "error": message, "exit_code": code}, indent=1), flush=True)
    print(f"ecg: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
