"""The stack into an account: a change set that is shown, then carried out; setup and waking through boto3."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from components.params import UserError
from infra.aws import sizes

INLINE_BYTES = 51_200  # what CloudFormation takes without S3


def to_json(template: Any) -> str:
    """As few bytes as CloudFormation reads."""
    return json.dumps(template.to_dict(), separators=(",", ":"), sort_keys=True)


def lint(text: str) -> list[str]:
    """What cfn-lint says of a template, one line a finding; empty where it is clean."""
    from cfnlint import lint as check

    return [f"{found.rule.id} {'/'.join(map(str, found.path or ()))}: {found.message}" for found in check(text)]


def settings(given: Sequence[str]) -> dict[str, str]:
    """KEY=VALUE pairs.

    Raises:
        UserError: one is none.
    """
    for pair in given:
        if "=" not in pair:
            raise UserError(f"--set: found '{pair}', expected NAME=VALUE with a parameter of the stack")
    return dict(pair.split("=", 1) for pair in given)


def plan(
    cfn: Any, s3: Any, stack: str, text: str, chosen: Mapping[str, str], bucket: str | None
) -> tuple[str, list[str]]:
    """Make a change set; its ARN and its changes ([]: nothing to change).

    Raises:
        UserError: the template needs a bucket, a parameter is unknown or missing, the stack is one that takes no
            change, or AWS refuses.
    """
    known = json.loads(text)["Parameters"]
    for name in chosen:
        if name not in known:
            raise UserError(f"--set: found '{name}', expected one of {', '.join(sorted(known))}")
    before = _find(cfn, stack)
    had = {one["ParameterKey"] for one in before.get("Parameters", [])} if before else set()
    lacking = [name for name, what in known.items() if "Default" not in what and name not in {*chosen, *had}]
    if lacking:
        raise UserError(f"--set: {', '.join(lacking)} have no default; expected --set NAME=VALUE for each")
    values: list[dict[str, Any]] = [{"ParameterKey": key, "ParameterValue": value} for key, value in chosen.items()]
    values += [{"ParameterKey": key, "UsePreviousValue": True} for key in known if key in had - set(chosen)]
    if before.get("StackStatus") == "ROLLBACK_COMPLETE":
        raise UserError(
            f"{stack}: AWS rolled its first creation back, and such a stack takes no change; its buckets and key "
            f"were kept: delete them if they are empty, then `aws cloudformation delete-stack --stack-name {stack}`"
        )
    with _told(stack):
        source = _source(s3, stack, text, bucket)
        made = cfn.create_change_set(
            StackName=stack, ChangeSetName=f"change-{int(time.time())}", Parameters=values,
            ChangeSetType="UPDATE" if before else "CREATE", Capabilities=["CAPABILITY_NAMED_IAM"], **source,
        )  # fmt: skip
        return made["Id"], _changes(cfn, made["Id"])


def carry_out(cfn: Any, stack: str, change_set: str) -> None:
    """Execute the change set and wait for its end.

    Raises:
        UserError: AWS rolled it back; its reasons are told.
    """
    from botocore.exceptions import WaiterError

    status = cfn.describe_stacks(StackName=stack)["Stacks"][0]["StackStatus"]
    cfn.execute_change_set(ChangeSetName=change_set, StackName=stack)
    waiter = "stack_create_complete" if status == "REVIEW_IN_PROGRESS" else "stack_update_complete"
    try:
        cfn.get_waiter(waiter).wait(StackName=stack, WaiterConfig={"Delay": 15, "MaxAttempts": 240})
    except WaiterError as error:
        events = cfn.describe_stack_events(StackName=stack)["StackEvents"]
        failed = [one for one in events if one.get("ResourceStatus", "").endswith("FAILED")][:5]
        why = "; ".join(f"{one['LogicalResourceId']}: {one.get('ResourceStatusReason', '?')}" for one in failed)
        raise UserError(f"{stack}: AWS did not make the change ({why}); mend it and deploy again") from error


def outputs(cfn: Any, stack: str) -> dict[str, str]:
    """What the stack tells.

    Raises:
        UserError: there is no such stack.
    """
    found = _find(cfn, stack)
    if not found:
        raise UserError(f"--stack: there is no stack '{stack}' in this account and region; deploy it first")
    return {one["OutputKey"]: one["OutputValue"] for one in found.get("Outputs", [])}


def scale(ecs: Any, cluster: str, count: int) -> None:
    """Every server to `count` tasks: 1 wakes, 0 puts to sleep."""
    for size in sizes.SERVERS:
        ecs.update_service(cluster=cluster, service=size.name, desiredCount=count)


def run_setup(ecs: Any, told: Mapping[str, str]) -> str:
    """Start the task that makes accounts, pools and deployments; its ARN."""
    network = {
        "subnets": told["Subnets"].split(","), "securityGroups": [told["WorkerGroup"]], "assignPublicIp": "ENABLED",
    }  # fmt: skip
    answer = ecs.run_task(
        cluster=told["Cluster"], taskDefinition=told["SetupTaskDefinition"], launchType="FARGATE",
        networkConfiguration={"awsvpcConfiguration": network},
    )  # fmt: skip
    if not answer["tasks"]:
        raise UserError(f"setup: ECS did not start it: {answer['failures']}")
    return str(answer["tasks"][0]["taskArn"])


def _find(cfn: Any, stack: str) -> dict[str, Any]:
    from botocore.exceptions import ClientError

    try:
        found: dict[str, Any] = cfn.describe_stacks(StackName=stack)["Stacks"][0]
    except ClientError as error:
        if "does not exist" not in str(error):
            raise
        return {}
    return {} if found["StackStatus"] == "REVIEW_IN_PROGRESS" else found  # a first change set that nobody carried out


@contextmanager
def _told(stack: str) -> Iterator[None]:
    """What AWS refuses in the block as the user's error."""
    from botocore.exceptions import ClientError

    try:
        yield
    except ClientError as error:
        raise UserError(f"{stack}: AWS refuses: {error}") from error


def _source(s3: Any, stack: str, text: str, bucket: str | None) -> dict[str, str]:
    if len(text.encode()) <= INLINE_BYTES:
        return {"TemplateBody": text}
    if bucket is None:
        raise UserError(
            f"--template-bucket: the template has {len(text.encode())} bytes, CloudFormation takes {INLINE_BYTES} "
            "without S3; name a bucket of yours for it"
        )
    key = f"{stack}/template.json"
    s3.put_object(Bucket=bucket, Key=key, Body=text.encode())
    return {"TemplateURL": f"https://{bucket}.s3.{s3.meta.region_name}.amazonaws.com/{key}"}


def _changes(cfn: Any, change_set: str) -> list[str]:
    while True:
        found = cfn.describe_change_set(ChangeSetName=change_set)
        if found["Status"] == "FAILED":
            reason = found.get("StatusReason", "")
            if "didn't contain changes" in reason or "No updates" in reason:
                return []
            raise UserError(f"the change set failed: {reason}")
        if found["Status"] not in ("CREATE_PENDING", "CREATE_IN_PROGRESS"):
            pages = cfn.get_paginator("describe_change_set").paginate(ChangeSetName=change_set)
            changes = [one["ResourceChange"] for page in pages for one in page.get("Changes", [])]
            return [f"{one['Action']} {one['ResourceType']} {one['LogicalResourceId']}" for one in changes]
        time.sleep(3)
