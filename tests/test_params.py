"""params.yaml: every mistake is named with its key and the way out."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml

from components.params import UserError, load_params, parse_params, to_dict

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def tree():
    return yaml.safe_load((REPOSITORY / "params.yaml").read_text())


def test_the_default_recipe_is_read_whole(tree):
    params = load_params(REPOSITORY / "params.yaml")
    assert params.recipe == "ecg-tiny"
    assert params.train.lora.targets == ("linear", "convolution")
    assert to_dict(params.train) == tree["train"]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("train", "lora", "rnk"), 8, r"unknown key 'train.lora.rnk'; did you mean 'train.lora.rank'\?"),
        (("trian",), {}, r"unknown key 'trian'; did you mean 'train'\?"),
        (("train", "steps"), "many", r"'train.steps' holds 'many' \(str\), expected a whole number"),
        (("train", "steps"), True, r"'train.steps' holds True \(bool\), expected a whole number"),
        (("train", "learning_rate"), "2e-3", r"YAML reads 2e-3 as text"),
        (("train", "learning_rate"), float("nan"), r"'train.learning_rate' holds nan"),
        (
            ("records", "limit"),
            1.5,
            r"'records.limit' holds 1.5 \(float\), expected null or a whole number|a whole number",
        ),
        (
            ("train", "lora", "targets"),
            "linear",
            r"'train.lora.targets' holds 'linear' \(str\), expected a list of text",
        ),
        (("train", "lora"), 3, r"train.lora holds 3, expected a mapping"),
        (("exams", "views"), [{"style": "clean"}], r"'exams.views\[0\].layout' is missing"),
        (("gate", "rules"), [], r"'gate.rules' holds \[\] \(list\), expected a mapping of names"),
        (("gate", "rules", "auc"), {"exam": "super"}, r"'gate.rules.auc.kind' holds None"),
        (("gate", "rules", "auc", "kind"), "treshold", r"holds 'treshold'; did you mean 'threshold'"),
        (
            ("gate", "rules", "size", "of"),
            "bytes",
            r"'gate.rules.size.of' holds 'bytes' .* expected one of adapter_bytes",
        ),
        (("gate", "rules", "size", "min"), 1.0, r"unknown key 'gate.rules.size.min'"),
    ],
)
def test_a_mistake_names_key_found_and_expected(tree, path, value, message):
    broken = copy.deepcopy(tree)
    place = broken
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(UserError, match=message):
        parse_params(broken)


def test_a_missing_key_is_an_error_not_a_default(tree):
    del tree["train"]["seed"]
    with pytest.raises(UserError, match=r"'train.seed' is missing; expected a whole number"):
        parse_params(tree)


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [")
    with pytest.raises(UserError, match="is not valid YAML"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("- 1")
    with pytest.raises(UserError, match="found list at the top"):
        load_params(tmp_path / "params.yaml")
