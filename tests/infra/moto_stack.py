"""The stack in moto's account: the template as far as moto makes it, and what is there then."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import pytest
from moto import mock_aws
from moto.core import DEFAULT_ACCOUNT_ID as ACCOUNT

from infra.aws import deploy

# What moto 5.2 does not make from a template. What asks for one of these is given an ARN that stands for it.
NOT_MADE = {
    *("AWS::Budgets::Budget", "AWS::CloudWatch::Alarm", "AWS::Logs::MetricFilter", "AWS::Scheduler::Schedule"),
    *("AWS::ECS::CapacityProvider", "AWS::ECS::ClusterCapacityProviderAssociations"),
    *("AWS::S3::BucketPolicy", "AWS::SNS::TopicPolicy", "AWS::SQS::QueuePolicy", "AWS::SecretsManager::Secret"),
    *("AWS::ServiceDiscovery::PrivateDnsNamespace", "AWS::ServiceDiscovery::Service"),
    "AWS::RDS::DBCluster",  # and AuroraWriter, its only instance
}
STACK, BUCKET = "team", "templates-of-ours"
NEEDED = {"AlertEmail": "ops@example.org", "Repository": "https://git.example.org/team/ecg.git"}


def for_moto(template: dict[str, Any]) -> dict[str, Any]:
    """The template without what moto does not make, and in words that moto reads as CloudFormation does."""
    made = copy.deepcopy(template)
    gone = {name for name, one in made["Resources"].items() if one["Type"] in NOT_MADE} | {"AuroraWriter"}
    made["Resources"] = {name: one for name, one in made["Resources"].items() if name not in gone}
    made["Resources"]["Key"]["Properties"].pop("Tags")  # moto reads a key's tags as KMS itself spells them
    for one in made["Resources"].values():
        after = one.pop("DependsOn", [])
        after = [name for name in ([after] if isinstance(after, str) else after) if name not in gone]
        if after:
            one["DependsOn"] = after

    def stand(name: str, attribute: str = "") -> str:
        return f"arn:aws:elsewhere:us-east-1:{ACCOUNT}:{name}{attribute}"

    def fill(tree: Any) -> Any:
        if isinstance(tree, list):
            return [fill(value) for value in tree]
        if not isinstance(tree, dict):
            return tree
        if tree.get("Ref") in gone:
            return stand(tree["Ref"])
        if "Fn::GetAtt" in tree:
            name, attribute = tree["Fn::GetAtt"]
            if attribute == "ServiceArn":  # in CloudFormation the same as Ref; moto knows only that
                return {"Ref": name}
            return stand(name, f".{attribute}") if name in gone else tree
        if isinstance(tree.get("Fn::Sub"), str):
            found = re.sub(
                r"\$\{(\w+)(\.\w+)?\}",
                lambda match: stand(match[1], match[2] or "") if match[1] in gone else match[0],
                tree["Fn::Sub"],
            )
            return {"Fn::Sub": found}
        return {key: fill(value) for key, value in tree.items()}

    filled: dict[str, Any] = fill(made)
    return filled


@contextmanager
def an_account() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.delenv("AWS_ENDPOINT_URL", raising=False)
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield


def make(template: dict[str, Any], **chosen: str) -> list[str]:
    """Plan and carry out the stack; what the change set said."""
    cfn, text = boto3.client("cloudformation"), json.dumps(for_moto(template))
    change_set, changes = deploy.plan(cfn, boto3.client("s3"), STACK, text, {**NEEDED, **chosen}, BUCKET)
    deploy.carry_out(cfn, STACK, change_set)
    return changes


def resources() -> dict[str, str]:
    """Logical name -> physical name of what is there."""
    pages = boto3.client("cloudformation").get_paginator("list_stack_resources").paginate(StackName=STACK)
    return {
        one["LogicalResourceId"]: one["PhysicalResourceId"]
        for page in pages
        for one in page["StackResourceSummaries"]
        if one.get("ResourceType")  # moto lists those whose condition does not hold without a type
    }
