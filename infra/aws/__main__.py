"""python -m infra.aws COMMAND: the stack as text, checked, deployed; policies; cost."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from components.params import UserError
from infra.aws import cost, deploy, policies
from infra.aws.stack import build

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
Stack = Annotated[str, typer.Option("--stack", help="Its name; letters, digits and '-'.")]


@app.command()
def synth() -> None:
    """Print the template as JSON."""
    print(deploy.to_json(build()))


@app.command()
def lint() -> None:
    """Check the template with cfn-lint; exit with 2 if it finds anything."""
    found = deploy.lint(deploy.to_json(build()))
    print("\n".join(found) or "clean")
    raise typer.Exit(2 if found else 0)


@app.command("deploy")
def deploy_stack(
    values: Annotated[list[str], typer.Option("--set", metavar="NAME=VALUE", help="A parameter.")] = [],  # noqa: B006
    template_bucket: Annotated[str | None, typer.Option(help="A bucket of yours to put the template in.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Carry it out without asking.")] = False,
    stack: Stack = "ecg",
) -> None:
    """Show what would change, then change it. Parameters that are not set stay as they are."""
    cfn = _client("cloudformation")
    text, chosen = deploy.to_json(build()), deploy.settings(values)
    change_set, changes = deploy.plan(cfn, _client("s3"), stack, text, chosen, template_bucket)
    print("\n".join(changes) or "nothing to change")
    if changes and (yes or typer.confirm("Carry it out?")):
        deploy.carry_out(cfn, stack, change_set)
        print(json.dumps(deploy.outputs(cfn, stack), indent=2))


@app.command()
def outputs(stack: Stack = "ecg") -> None:
    """What the stack tells, as JSON."""
    print(json.dumps(deploy.outputs(_client("cloudformation"), stack), indent=2))


@app.command()
def wake(stack: Stack = "ecg") -> None:
    """Start every server."""
    deploy.scale(_client("ecs"), deploy.outputs(_client("cloudformation"), stack)["Cluster"], 1)


@app.command()
def sleep(stack: Stack = "ecg") -> None:
    """Stop every server, whatever runs."""
    deploy.scale(_client("ecs"), deploy.outputs(_client("cloudformation"), stack)["Cluster"], 0)


@app.command()
def setup(stack: Stack = "ecg") -> None:
    """Start the task that makes accounts, pools and deployments; prints its ARN."""
    print(deploy.run_setup(_client("ecs"), deploy.outputs(_client("cloudformation"), stack)))


@app.command()
def policy(
    role: Annotated[str, typer.Argument(help=", ".join(policies.ROLES))],
    bucket: Annotated[str, typer.Option(help="The data bucket.")],
    ledger: Annotated[str, typer.Option(help="The ledger's bucket.")],
) -> None:
    """Print a role's policy for any S3 that takes IAM's documents."""
    place = policies.Place(f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{ledger}")
    print(json.dumps(policies.document(role, place), indent=2))


@app.command("cost")
def show_cost(write: Annotated[bool, typer.Option("--write", help="Into docs/cost.md.")] = False) -> None:
    """What a nightly run and idling cost, from infra/aws/prices.yaml."""
    prices = cost.read_prices()
    print(cost.tables(prices))
    if write:
        cost.PAGE.write_text(cost.page(cost.PAGE.read_text(), prices))


def _client(service: str) -> Any:
    import boto3

    return boto3.client(service)


if __name__ == "__main__":
    try:
        app(prog_name="python -m infra.aws")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
