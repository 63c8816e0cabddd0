"""What somebody must hear of: one topic, one address, and what speaks on it."""

from __future__ import annotations

from typing import Any

from troposphere import Ref, Template, budgets, cloudwatch, events, logs, sns

from infra.aws.gpu import Gpu
from infra.aws.parameters import IS_AURORA, IS_INSTANCE, filled, named
from infra.aws.policies import allow
from infra.aws.stores import Stores

HOUR, DAY, GIB = 3600, 86400, 1024**3
DATABASE_GB = 50  # for MLflow's and Prefect's tables a sign that something writes without end
WATCH_FIELDS = {
    "RetrainsCompleted": "retrains_completed",
    "RunsFailed": "runs_failed",
}  # metric -> in the watch's lines


def add_alarms(template: Template, stores: Stores, gpu: Gpu) -> Ref:
    """The topic, the alarms, the budget; returns the topic."""
    topic = _topic(template, stores)
    for metric, field in WATCH_FIELDS.items():
        _read_from_watch(template, metric, field)
    watch = {"Namespace": named("watch")}
    alarm = _Alarms(template, topic)
    alarm.add(
        "NoNightlyRun",
        "No retraining has finished for a day: look at Prefect's runs of `retrain`",
        MetricName="RetrainsCompleted",
        Statistic="Maximum",
        Period=DAY,
        EvaluationPeriods=1,
        Threshold=1,
        ComparisonOperator="LessThanThreshold",
        TreatMissingData="breaching",
        **watch,
    )
    alarm.add(
        "RunFailed",
        "A flow run failed or crashed: look at it in Prefect",
        MetricName="RunsFailed",
        Statistic="Maximum",
        Period=HOUR,
        EvaluationPeriods=1,
        Threshold=0,
        ComparisonOperator="GreaterThanThreshold",
        TreatMissingData="notBreaching",
        **watch,
    )
    alarm.add(
        "GpuUpTooLong",
        "A GPU machine is up for GpuAlarmHours without a break: look for a stage that hangs",
        Namespace="AWS/AutoScaling",
        MetricName="GroupInServiceInstances",
        Statistic="Minimum",
        Period=HOUR,
        EvaluationPeriods=Ref("GpuAlarmHours"),
        Threshold=0,
        ComparisonOperator="GreaterThanThreshold",
        TreatMissingData="notBreaching",
        Dimensions=[cloudwatch.MetricDimension(Name="AutoScalingGroupName", Value=gpu.machines)],
    )
    alarm.add(
        "AuroraGrows",
        f"The database is larger than {DATABASE_GB} GiB: see what fills it",
        Condition=IS_AURORA,
        Namespace="AWS/RDS",
        MetricName="VolumeBytesUsed",
        Statistic="Maximum",
        Period=HOUR,
        EvaluationPeriods=1,
        Threshold=DATABASE_GB * GIB,
        ComparisonOperator="GreaterThanThreshold",
        TreatMissingData="notBreaching",
        Dimensions=[cloudwatch.MetricDimension(Name="DBClusterIdentifier", Value=Ref("Aurora"))],
    )
    alarm.add(
        "PostgresFull", "The database has less than 2 GiB left: it grows by itself up to 100 GiB; see what fills it",
        Condition=IS_INSTANCE, Namespace="AWS/RDS", MetricName="FreeStorageSpace", Statistic="Minimum", Period=HOUR,
        EvaluationPeriods=1, Threshold=2 * GIB, ComparisonOperator="LessThanThreshold", TreatMissingData="notBreaching",
        Dimensions=[cloudwatch.MetricDimension(Name="DBInstanceIdentifier", Value=Ref("Postgres"))],
    )  # fmt: skip
    _spot_taken_back(template, topic)
    _budget(template, topic)
    return topic


class _Alarms:
    def __init__(self, template: Template, topic: Ref) -> None:
        self._template, self._topic = template, topic

    def add(self, title: str, about: str, **what: Any) -> None:
        self._template.add_resource(
            cloudwatch.Alarm(title, AlarmName=named(title), AlarmDescription=about, AlarmActions=[self._topic], **what)
        )


def _topic(template: Template, stores: Stores) -> Ref:
    topic = template.add_resource(
        sns.Topic(
            "Alerts", TopicName=named("alerts"), KmsMasterKeyId=stores.key,
            Subscription=[sns.Subscription(Protocol="email", Endpoint=Ref("AlertEmail"))],
        )
    )  # fmt: skip
    speakers = ["cloudwatch.amazonaws.com", "events.amazonaws.com", "budgets.amazonaws.com"]
    here = {"StringEquals": {"aws:SourceAccount": "${AWS::AccountId}"}}
    speak = {**allow("Speak", ["sns:Publish"], ["${Alerts}"], here), "Principal": {"Service": speakers}}
    document = filled({"Version": "2012-10-17", "Statement": [speak]})
    template.add_resource(sns.TopicPolicy("AlertsPolicy", Topics=[Ref(topic)], PolicyDocument=document))
    return Ref(topic)


def _read_from_watch(template: Template, metric: str, field: str) -> None:
    """The watch writes a line of JSON every ten minutes; its numbers become metrics."""
    change = logs.MetricTransformation(
        MetricNamespace=named("watch"), MetricName=metric, MetricValue=f"$.{field}", Unit="Count"
    )
    template.add_resource(
        logs.MetricFilter(
            f"{metric}Filter", LogGroupName=Ref("WatchLog"), FilterPattern=f"{{ $.{field} >= 0 }}",
            MetricTransformations=[change],
        )
    )  # fmt: skip


def _spot_taken_back(template: Template, topic: Ref) -> None:
    """The warning comes two minutes before; the event names the machine only, so it speaks for the whole account."""
    told = events.InputTransformer(
        InputPathsMap={"machine": "$.detail.instance-id", "zone": "$.region"},
        InputTemplate='"AWS takes back the spot machine <machine> in <zone>. Its run goes on from its checkpoint on'
        ' another machine; there is nothing to do unless this comes again and again."',
    )
    template.add_resource(
        events.Rule(
            "SpotTakenBack", Description="EC2 takes a spot machine back",
            EventPattern={"source": ["aws.ec2"], "detail-type": ["EC2 Spot Instance Interruption Warning"]},
            Targets=[events.Target(Id="alerts", Arn=topic, InputTransformer=told)],
        )
    )  # fmt: skip


def _budget(template: Template, topic: Ref) -> None:
    """Of the whole account: a budget by tag counts nothing until somebody has switched the tag on for billing."""
    heard = [
        budgets.Subscriber(SubscriptionType="EMAIL", Address=Ref("AlertEmail")),
        budgets.Subscriber(SubscriptionType="SNS", Address=topic),
    ]
    warnings = [
        budgets.NotificationWithSubscribers(
            Notification=budgets.Notification(
                NotificationType=kind, ComparisonOperator="GREATER_THAN", Threshold=percent, ThresholdType="PERCENTAGE"
            ),
            Subscribers=heard,
        )
        for kind, percent in (("ACTUAL", 50), ("ACTUAL", 80), ("FORECASTED", 100))
    ]
    template.add_resource(
        budgets.Budget(
            "Budget", NotificationsWithSubscribers=warnings, DependsOn="AlertsPolicy",
            Budget=budgets.BudgetData(
                BudgetName=named("monthly"), BudgetType="COST", TimeUnit="MONTHLY",
                BudgetLimit=budgets.Spend(Amount=Ref("BudgetUsd"), Unit="USD"),
            ),
        )
    )  # fmt: skip
