"""A team's servers, buckets, roles and GPU capacity on AWS: one CloudFormation stack, written with troposphere.

`python -m infra.aws --help`; how to install it: infra/aws/README.md; what it costs: docs/cost.md.
"""
