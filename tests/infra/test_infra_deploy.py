"""`python -m infra.aws`: on moto, and with clients that answer as AWS does where moto does not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError, WaiterError
from moto_stack import ACCOUNT, BUCKET, NEEDED, STACK, an_account, for_moto, make, resources
from typer.testing import CliRunner

import infra.aws.__main__ as program
from components.params import UserError
from infra.aws import deploy, sizes


@pytest.fixture
def account() -> Iterator[None]:
    with an_account():
        yield


@pytest.mark.slow
def test_with_a_certificate_there_is_a_door_with_tls_and_an_instance(account: None, template: dict[str, Any]) -> None:
    certificate = boto3.client("acm").request_certificate(DomainName="ecg.example.org")["CertificateArn"]
    make(
        template, CertificateArn=certificate, TeamHost="ecg.example.org", Database="instance", AllowedCidr="10.0.0.0/8"
    )
    elb, there = boto3.client("elbv2"), resources()
    (balancer,) = elb.describe_load_balancers()["LoadBalancers"]
    listeners = elb.describe_listeners(LoadBalancerArn=balancer["LoadBalancerArn"])["Listeners"]
    assert {(one["Port"], one["Protocol"]) for one in listeners} == {(443, "HTTPS"), (4200, "HTTPS")}
    (database,) = boto3.client("rds").describe_db_instances()["DBInstances"]
    assert (database["StorageEncrypted"], database["PubliclyAccessible"]) == (True, False)
    assert there["Postgres"] == database["DBInstanceIdentifier"]
    open_to = [
        given["CidrIp"]
        for group in boto3.client("ec2").describe_security_groups()["SecurityGroups"]
        if group["GroupName"] != "default"
        for rule in group["IpPermissions"]
        for given in rule["IpRanges"]
    ]
    assert set(open_to) == {"10.0.0.0/8"}


@pytest.mark.slow
def test_the_program_deploys_tells_wakes_and_puts_to_sleep(
    account: None, template: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = json.dumps(for_moto(template))
    monkeypatch.setattr(program.deploy, "to_json", lambda _: text)
    run = CliRunner()
    named = ["--stack", STACK]
    asked = ["deploy", *named, "--template-bucket", BUCKET, *(f"--set={key}={one}" for key, one in NEEDED.items())]
    declined = run.invoke(program.app, asked, input="n\n")
    assert declined.exit_code == 0
    assert "Add AWS::ECS::Cluster Cluster" in declined.output
    assert not boto3.client("ecs").list_clusters()["clusterArns"], "nobody said yes"
    boto3.client("cloudformation").delete_stack(StackName=STACK)
    # moto forgets the outputs of a stack that a change set makes; so this one is made at once.
    boto3.client("cloudformation").create_stack(
        StackName=STACK,
        TemplateURL=f"https://{BUCKET}.s3.us-east-1.amazonaws.com/{STACK}/template.json",
        Parameters=[{"ParameterKey": key, "ParameterValue": one} for key, one in NEEDED.items()],
    )
    told = json.loads(run.invoke(program.app, ["outputs", *named]).stdout)
    assert set(told) == set(template["Outputs"]) - {"DoorAddress"}
    assert told["Ledger"] == f"s3://{STACK}-ledger-{ACCOUNT}/entries"
    assert told["DvcRemote"] == f"s3://{STACK}-data-{ACCOUNT}/dvc"
    assert len(told["Subnets"].split(",")) == 3

    def counts() -> set[int]:
        services = [size.name for size in sizes.SERVERS]
        found = boto3.client("ecs").describe_services(cluster=told["Cluster"], services=services)
        return {one["desiredCount"] for one in found["services"]}

    for command, count in (("wake", 1), ("sleep", 0)):
        assert run.invoke(program.app, [command, *named]).exit_code == 0
        assert counts() == {count}


def test_a_stack_that_is_not_there_is_told(account: None) -> None:
    with pytest.raises(UserError, match="there is no stack 'other'"):
        deploy.outputs(boto3.client("cloudformation"), "other")


@dataclass
class Cfn:
    """CloudFormation's answers, in order."""

    status: str = "UPDATE_COMPLETE"
    sets: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, str]] = field(default_factory=list)
    refusal: str = ""
    parameters: list[dict[str, Any]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def describe_stacks(self, **_: Any) -> dict[str, Any]:
        had = [{"ParameterKey": key, "ParameterValue": one} for key, one in NEEDED.items()]
        return {"Stacks": [{"StackStatus": self.status, "Parameters": had}]}

    def create_change_set(self, **what: Any) -> dict[str, str]:
        if self.refusal:
            raise ClientError({"Error": {"Code": "AccessDenied", "Message": self.refusal}}, "CreateChangeSet")
        self.asked.append(what["ChangeSetType"])
        self.parameters = what["Parameters"]
        return {"Id": "arn:change"}

    def describe_change_set(self, **_: Any) -> dict[str, Any]:
        return self.sets.pop(0) if len(self.sets) > 1 else self.sets[0]

    def get_paginator(self, _: str) -> Cfn:
        return self

    def paginate(self, **_: Any) -> list[dict[str, Any]]:
        return self.sets

    def execute_change_set(self, **_: Any) -> None:
        self.asked.append("execute")

    def get_waiter(self, name: str) -> Cfn:
        self.asked.append(name)
        return self

    def wait(self, **_: Any) -> None:
        if self.events:
            raise WaiterError("StackUpdateComplete", "failed", {})

    def describe_stack_events(self, **_: Any) -> dict[str, Any]:
        return {"StackEvents": self.events}


SMALL = json.dumps({"Parameters": {key: {} for key in NEEDED}})


def test_changes_are_awaited_and_all_pages_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(deploy.time, "sleep", slept.append)
    change = {
        "ResourceChange": {"Action": "Modify", "ResourceType": "AWS::S3::Bucket", "LogicalResourceId": "DataBucket"}
    }
    cfn = Cfn(
        sets=[
            {"Status": "CREATE_PENDING"},
            {"Status": "CREATE_IN_PROGRESS"},
            {"Status": "CREATE_COMPLETE", "Changes": [change]},
        ]
    )
    assert deploy.plan(cfn, None, STACK, SMALL, {}, None) == ("arn:change", ["Modify AWS::S3::Bucket DataBucket"])
    assert (slept, cfn.asked) == ([3, 3], ["UPDATE"])


def test_what_is_not_set_stays_as_it_was() -> None:
    cfn = Cfn(sets=[{"Status": "CREATE_COMPLETE"}])
    deploy.plan(cfn, None, STACK, SMALL, {"Repository": "https://elsewhere.example.org/ecg.git"}, None)
    assert cfn.parameters == [
        {"ParameterKey": "Repository", "ParameterValue": "https://elsewhere.example.org/ecg.git"},
        {"ParameterKey": "AlertEmail", "UsePreviousValue": True},
    ]


def test_nothing_to_change_is_no_error_and_a_failed_change_set_is() -> None:
    same = Cfn(sets=[{"Status": "FAILED", "StatusReason": "The submitted information didn't contain changes."}])
    assert deploy.plan(same, None, STACK, SMALL, {}, None) == ("arn:change", [])
    with pytest.raises(UserError, match="the change set failed: no such parameter"):
        deploy.plan(Cfn(sets=[{"Status": "FAILED", "StatusReason": "no such parameter"}]), None, STACK, SMALL, {}, None)


def test_what_aws_refuses_and_a_stack_that_takes_no_change_are_told() -> None:
    with pytest.raises(UserError, match=r"AWS refuses: .*not authorized"):
        deploy.plan(Cfn(refusal="not authorized"), None, STACK, SMALL, {}, None)
    with pytest.raises(UserError, match=f"delete-stack --stack-name {STACK}"):
        deploy.plan(Cfn(status="ROLLBACK_COMPLETE"), None, STACK, SMALL, {}, None)


def test_a_first_change_set_that_nobody_carried_out_is_made_anew() -> None:
    cfn = Cfn(status="REVIEW_IN_PROGRESS", sets=[{"Status": "CREATE_COMPLETE", "Changes": []}])
    deploy.plan(cfn, None, STACK, SMALL, NEEDED, None)
    assert cfn.asked == ["CREATE"]


def test_a_rollback_is_told_with_its_reasons() -> None:
    reasons = [
        {"LogicalResourceId": "Images", "ResourceStatus": "CREATE_FAILED", "ResourceStatusReason": "quota reached"},
        {"LogicalResourceId": STACK, "ResourceStatus": "UPDATE_ROLLBACK_COMPLETE"},
    ]
    cfn = Cfn(events=reasons)
    with pytest.raises(UserError, match=r"did not make the change \(Images: quota reached\)"):
        deploy.carry_out(cfn, STACK, "arn:change")
    assert cfn.asked == ["execute", "stack_update_complete"]
    first = Cfn(status="REVIEW_IN_PROGRESS")
    deploy.carry_out(first, STACK, "arn:change")
    assert first.asked == ["execute", "stack_create_complete"]


class Ecs:
    """ECS with room, or without."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self.answer, self.asked = answer, {}

    def run_task(self, **what: Any) -> dict[str, Any]:
        self.asked = what
        return self.answer


def test_setup_is_started_as_a_task_and_a_refusal_is_told() -> None:
    """moto starts no Fargate task whose containers share the task's memory."""
    told = {"Subnets": "subnet-1,subnet-2", "WorkerGroup": "sg-1", "Cluster": "c", "SetupTaskDefinition": "arn:setup:3"}
    ecs = Ecs({"tasks": [{"taskArn": "arn:task"}], "failures": []})
    assert deploy.run_setup(ecs, told) == "arn:task"
    network = ecs.asked["networkConfiguration"]["awsvpcConfiguration"]
    assert (network["subnets"], network["securityGroups"]) == (["subnet-1", "subnet-2"], ["sg-1"])
    assert (ecs.asked["cluster"], ecs.asked["taskDefinition"]) == ("c", "arn:setup:3")
    with pytest.raises(UserError, match="RESOURCE:MEMORY"):
        deploy.run_setup(Ecs({"tasks": [], "failures": [{"reason": "RESOURCE:MEMORY"}]}), told)
