"""The AWS stack: what it says is asserted by meaning, linted, and applied to moto as far as moto goes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws
from moto.core import set_initial_no_auth_action_count

from components.params import UserError
from infra.aws import cost, deploy, policies, sizes, watch
from infra.aws.stack import build

REPOSITORY = Path(__file__).resolve().parents[2]
PLACE = policies.Place("arn:aws:s3:::data", "arn:aws:s3:::ledger")


@pytest.fixture(scope="module")
def text() -> str:
    return deploy.to_json(build())


@pytest.fixture
def aws(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        yield


def of_type(template, kind):
    return {name: one.get("Properties", {}) for name, one in template["Resources"].items() if one["Type"] == kind}


def statements(tree):
    """Every policy statement anywhere in the template."""
    if isinstance(tree, dict):
        if "Effect" in tree and "Action" in tree:
            yield tree
        for value in tree.values():
            yield from statements(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from statements(value)


def test_cfn_lint_finds_nothing(text):
    assert deploy.lint(text) == []


def test_buckets_are_versioned_encrypted_private_and_kept(template):
    buckets = of_type(template, "AWS::S3::Bucket")
    assert set(buckets) == {"DataBucket", "LedgerBucket"}
    for name, bucket in buckets.items():
        assert bucket["VersioningConfiguration"] == {"Status": "Enabled"}
        [rule] = bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"]
        assert rule["ServerSideEncryptionByDefault"]["SSEAlgorithm"] == "aws:kms"
        assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
        assert template["Resources"][name]["DeletionPolicy"] == "Retain"
    lock = buckets["LedgerBucket"]["ObjectLockConfiguration"]["Rule"]["DefaultRetention"]
    assert (lock["Mode"], template["Parameters"]["LedgerMode"]["Default"]) == ({"Ref": "LedgerMode"}, "COMPLIANCE")
    rules = {rule["Id"]: rule for rule in buckets["DataBucket"]["LifecycleConfiguration"]["Rules"]}
    assert (rules["checkpoints"]["Prefix"], set(rules)) == (
        "checkpoints/",
        {"checkpoints", "old-versions", "broken-uploads"},
    )


def test_no_statement_allows_everything(template):
    for one in statements(template):
        wide = [action for action in one["Action"] if "*" in action] if isinstance(one["Action"], list) else []
        if one["Effect"] == "Allow" and one.get("Sid") not in {"Account", "Alarms", "Events", "Budgets", "Logs"}:
            assert not wide, one
            if one.get("Resource") == ["*"]:  # only what IAM knows no resource for, or a condition narrows
                assert one.get("Condition") or one["Sid"] in {"EnterRegistry", "ReadDefinitions", "Tunnel"}, one


def test_secrets_come_by_reference_only(template):
    for definition in of_type(template, "AWS::ECS::TaskDefinition").values():
        for container in definition["ContainerDefinitions"]:
            for one in container["Environment"]:
                assert not re.search("PASSWORD|AUTH_STRING|TOKEN|(?<!ECG_PREFECT_AUTH_)SECRET$", one["Name"]), one
    for secret in of_type(template, "AWS::SecretsManager::Secret").values():
        assert "SecretString" not in secret
    for kind in ("AWS::RDS::DBCluster", "AWS::RDS::DBInstance"):
        for database in of_type(template, kind).values():
            password = database.get("MasterUserPassword", {"Fn::Sub": "{{resolve:secretsmanager:"})
            assert password["Fn::Sub"].startswith("{{resolve:secretsmanager:")
            assert database.get("PubliclyAccessible", False) is False
            assert database.get("StorageEncrypted", True) is True


def test_what_trains_keeps_its_checkpoints_where_a_lost_machine_does_not_matter(template):
    told = template["Outputs"]["Checkpoints"]["Value"]
    for name in ("WorkerTask", "GpuTask"):
        [container] = template["Resources"][name]["Properties"]["ContainerDefinitions"]
        assert {"Name": "ECG_CHECKPOINTS", "Value": told} in container["Environment"]


def test_prefects_leases_outlive_its_container(template):
    containers = template["Resources"]["PrefectTask"]["Properties"]["ContainerDefinitions"]
    [server] = [one for one in containers if one["Name"] == "prefect"]
    assert {"Name": "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE", "Value": "flows.leases"} in server["Environment"]


def test_idle_is_zero(template):
    [group] = of_type(template, "AWS::AutoScaling::AutoScalingGroup").values()
    assert (group["MinSize"], "DesiredCapacity" in group) == ("0", False)
    [cluster] = of_type(template, "AWS::RDS::DBCluster").values()
    assert cluster["ServerlessV2ScalingConfiguration"]["MinCapacity"] == 0
    assert not of_type(template, "AWS::EC2::NatGateway")
    [balancer] = [one for one in template["Resources"].values() if one["Type"].endswith("V2::LoadBalancer")]
    assert balancer["Condition"] == "HasDoor"


def test_gpu_machines_are_spot_encrypted_and_keep_their_role_to_themselves(template):
    assert template["Parameters"]["GpuOnDemandPercent"]["Default"] == "0"
    [launch] = of_type(template, "AWS::EC2::LaunchTemplate").values()
    data = launch["LaunchTemplateData"]
    assert data["MetadataOptions"]["HttpTokens"] == "required"
    assert data["MetadataOptions"]["HttpPutResponseHopLimit"] == 1
    assert data["BlockDeviceMappings"][0]["Ebs"]["Encrypted"] is True


def test_the_world_reaches_nothing_but_the_door(template):
    for name, group in of_type(template, "AWS::EC2::SecurityGroup").items():
        for rule in group.get("SecurityGroupIngress", []):
            assert (name, rule["CidrIp"]) == ("DoorGroup", {"Ref": "AllowedCidr"})
    for rule in of_type(template, "AWS::EC2::SecurityGroupIngress").values():
        assert "CidrIp" not in rule


# Allowed and denied calls of each role: action, bucket, key.
CALLS = {
    "reader": ([("get", "data", "mlflow/a")],
               [("put", "data", "mlflow/a"), ("get", "data", "dvc/a"), ("get", "ledger", "entries/a")]),
    "approver": ([("get", "ledger", "entries/a")], [("put", "ledger", "entries/b"), ("get", "data", "mlflow/a")]),
    "trainer": ([("put", "data", "dvc/b"), ("delete", "data", "checkpoints/a"), ("uploads", "data", ""),
                 ("put", "ledger", "entries/b")],
                [("delete", "data", "dvc/a"), ("put", "data", "source/a"), ("delete", "ledger", "entries/a")]),
    "promoter": ([("put", "ledger", "entries/b"), ("get", "data", "source/a")],
                 [("delete", "ledger", "entries/a"), ("put", "data", "mlflow/a"), ("delete", "data", "dvc/a")]),
    "gpu-worker": ([("get", "data", "dvc/a"), ("put", "data", "checkpoints/b")],
                   [("get", "ledger", "entries/a"), ("get", "data", "source/a"), ("put", "data", "mlflow/a")]),
    "supplier": ([("put", "data", "source/b")], [("get", "data", "source/a"), ("put", "data", "dvc/b")]),
    "cleaner": ([("delete", "data", "dvc/a"), ("uploads", "data", ""), ("put", "ledger", "entries/b")],
                [("put", "data", "dvc/b"), ("delete", "ledger", "entries/a")]),
}  # fmt: skip


def call(s3, what, bucket, key):
    if what == "get":
        s3.get_object(Bucket=bucket, Key=key)
    elif what == "uploads":
        s3.list_multipart_uploads(Bucket=bucket)
    elif what == "put":
        s3.put_object(Bucket=bucket, Key=key, Body=b"x")
    else:
        s3.delete_object(Bucket=bucket, Key=key)


@pytest.mark.parametrize("role", CALLS)
@set_initial_no_auth_action_count(100)
def test_a_role_may_do_its_work_and_nothing_else(aws, role):
    """moto enforces actions and resources; it knows no conditions, so statements with one are left out here."""
    root, iam = boto3.client("s3"), boto3.client("iam")
    for bucket in ("data", "ledger"):
        root.create_bucket(Bucket=bucket)
    for prefix in ("dvc", "mlflow", "checkpoints", "source"):
        root.put_object(Bucket="data", Key=f"{prefix}/a", Body=b"x")
    root.put_object(Bucket="ledger", Key="entries/a", Body=b"x")
    document = policies.document(role, PLACE)
    document["Statement"] = [one for one in document["Statement"] if "Condition" not in one]
    iam.create_user(UserName=role)
    iam.put_user_policy(UserName=role, PolicyName="p", PolicyDocument=json.dumps(document))
    key = iam.create_access_key(UserName=role)["AccessKey"]
    mine = boto3.client(
        "s3", aws_access_key_id=key["AccessKeyId"], aws_secret_access_key=key["SecretAccessKey"]
    )  # fmt: skip
    from moto.core.responses import ActionAuthenticatorMixin

    ActionAuthenticatorMixin.request_count = 1000  # from here on every call is asked for its rights
    allowed, denied = CALLS[role]
    for one in allowed:
        call(mine, *one)
    for one in denied:
        with pytest.raises(ClientError, match="AccessDenied"):
            call(mine, *one)


def test_the_ledger_as_the_template_says_refuses_change(aws, template):
    """moto's CloudFormation makes buckets without a lock; so the template's lock is given to a bucket by hand."""
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="ledger", ObjectLockEnabledForBucket=True)
    rule = {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": int(template["Parameters"]["LedgerDays"]["Default"])}}
    s3.put_object_lock_configuration(
        Bucket="ledger", ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule}
    )
    made = s3.put_object(Bucket="ledger", Key="entries/1", Body=b"first", IfNoneMatch="*")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        s3.put_object(Bucket="ledger", Key="entries/1", Body=b"second", IfNoneMatch="*")
    with pytest.raises(ClientError, match="AccessDenied"):
        s3.delete_object(Bucket="ledger", Key="entries/1", VersionId=made["VersionId"])
    denied = {one["Sid"] for one in policies.ledger_bucket_policy(PLACE)["Statement"] if one["Effect"] == "Deny"}
    assert denied == {"OnlyTls", "NothingIsDeleted", "NothingIsWrittenTwice", "NoHoldIsLifted"}


def test_a_wrong_parameter_and_a_large_template_are_told(text):
    class Nothing:
        def describe_stacks(self, **_):
            raise ClientError({"Error": {"Code": "ValidationError", "Message": "ecg does not exist"}}, "x")

    with pytest.raises(UserError, match="expected one of"):
        deploy.plan(Nothing(), None, "ecg", text, {"Nonsense": "1"}, None)
    with pytest.raises(UserError, match="have no default"):
        deploy.plan(Nothing(), None, "ecg", text, {}, None)
    needed = {"AlertEmail": "a@b", "Repository": "https://x/y"}
    with pytest.raises(UserError, match="template-bucket"):
        deploy.plan(Nothing(), None, "ecg", text, needed, None)


class Ecs:
    def __init__(self, tasks):
        self.tasks, self.asleep = tasks, []

    def list_tasks(self, **_):
        return {"taskArns": self.tasks}

    def update_service(self, service, desiredCount, **_):
        self.asleep.append((service, desiredCount))


@pytest.mark.parametrize(("running", "tasks", "sleeps"), [([], [], True), (["r"], [], False), ([], ["gpu"], False)])
def test_the_watch_puts_to_sleep_only_what_has_nothing_to_do(running, tasks, sleeps, monkeypatch, capsys):
    def ask(path, body):
        if path == "/flows/filter":
            return [{"id": "decide"}]
        if path == "/flow_runs/count":
            return 1
        busy = "RUNNING" in body["flow_runs"]["state"]["type"]["any_"]
        return [{"flow_id": flow} for flow in ["decide", *(running if busy else [])]]

    def stop(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(watch.time, "sleep", stop)
    ecs, hours = Ecs(tasks), iter([0.0, 3 * 3600.0])
    names = ",".join(size.name for size in sizes.SERVERS)
    settings = {
        "ECG_AWAKE_HOURS": "2", "ECG_SERVERS": names, "ECG_CLUSTER": "c", "ECG_GPU_TASKS": "g", "ECG_SLEEPS": "yes",
    }  # fmt: skip
    if sleeps:
        watch.watch(settings, ask, ecs, lambda: next(hours))
    else:
        with pytest.raises(KeyboardInterrupt):
            watch.watch(settings, ask, ecs, lambda: next(hours))
    assert ecs.asleep == ([(size.name, 0) for size in sizes.SERVERS] if sleeps else [])
    said = json.loads(capsys.readouterr().out)
    assert (said["retrains_completed"], said["runs_failed"], said["sleeps"]) == (1, 0, sleeps)


def test_the_cost_page_says_what_the_script_computes():
    page = (REPOSITORY / "docs/cost.md").read_text()
    assert cost.page(page, cost.read_prices()) == page
