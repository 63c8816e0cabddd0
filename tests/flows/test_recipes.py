"""flows.recipes: overlay chains, overrides, and params.yaml as they leave it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from components.params import UserError, load_params
from flows.recipes import Change, list_recipes, resolve

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPES = REPOSITORY / "recipes"
PARAMS = REPOSITORY / "params.yaml"


@pytest.fixture
def params_file(tmp_path: Path) -> Path:
    return Path(shutil.copy(PARAMS, tmp_path))


def put(recipe: str | None, overrides: list[str], params_file: Path, folder: Path = RECIPES) -> list[Change]:
    resolution = resolve(recipe, overrides, params_file, folder)
    resolution.put_in_force(params_file)
    assert load_params(params_file) == resolution.params
    return list(resolution.changes)


def test_committed_params_are_the_default_recipe() -> None:
    assert PARAMS.read_text() == resolve("ecg-tiny", folder=RECIPES).text


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_resolves_and_bears_its_own_name(path: Path, params_file: Path) -> None:
    put(path.stem, [], params_file)
    assert load_params(params_file).recipe == path.stem
    assert yaml.safe_load(path.read_text())["recipe"] == path.stem
    assert params_file.read_text().startswith(path.read_text().splitlines()[0])


def test_every_recipe_is_listed() -> None:
    listed = {recipe.name: recipe for recipe in list_recipes(RECIPES)}
    assert sorted(listed) == sorted(path.stem for path in RECIPES.glob("*.yaml"))
    assert listed["ptbxl-tiny"].extends == "ecg-tiny"
    assert "PTB-XL" in listed["ptbxl-tiny"].summary


def test_an_overlay_changes_only_its_keys(params_file: Path) -> None:
    changes = put("ptbxl-tiny", ["records.source_dir=../elsewhere"], params_file)
    changed = {change.key: change.new for change in changes}
    assert changed["records.source_dir"] == "../elsewhere"
    assert changed["train.steps"] == yaml.safe_load((RECIPES / "ptbxl-tiny.yaml").read_text())["train"]["steps"]
    assert "train.batch_size" not in changed
    assert load_params(params_file).train.batch_size == load_params(PARAMS).train.batch_size


def test_set_alone_overlays_what_is_in_force_and_keeps_comments(params_file: Path) -> None:
    put("ptbxl-tiny", [], params_file)
    before = load_params(params_file)
    changes = put(None, ["train.lora.rank=8", "train.learning_rate=1e-5", "records.limit=20"], params_file)
    assert changes == [
        Change("records.limit", None, 20),
        Change("train.learning_rate", before.train.learning_rate, 1e-5),
        Change("train.lora.rank", before.train.lora.rank, 8),
    ]
    params = load_params(params_file)
    assert (params.recipe, params.train.lora.rank, params.train.learning_rate) == ("ptbxl-tiny", 8, 1e-5)
    assert "# higher: more capacity, larger adapter" in params_file.read_text()


def test_back_to_the_default_is_the_committed_file_again(params_file: Path) -> None:
    put("ptbxl-tiny", ["train.lora.targets=[linear]"], params_file)
    put("ecg-tiny", [], params_file)
    assert params_file.read_text() == PARAMS.read_text()


def test_nothing_to_change_leaves_the_file_alone(params_file: Path) -> None:
    before = params_file.stat().st_mtime_ns
    assert put(None, [], params_file) == []
    assert params_file.stat().st_mtime_ns == before


def test_a_recipe_mends_a_broken_file(params_file: Path) -> None:
    params_file.write_text("recipe: [")
    put("ecg-tiny", [], params_file)
    assert params_file.read_text() == PARAMS.read_text()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stepz=3", "--set: unknown key 'train.stepz'; did you mean 'train.steps'?"),
        ("trian.steps=3", "--set: unknown key 'trian'; did you mean 'train'?"),
        ("train.steps=many", "--set: key 'train.steps' holds 'many' (str), expected a whole number"),
        ("train.steps.x=3", "--set: key 'train.steps' holds {'x': 3} (dict), expected a whole number"),
        ("train.lora.targets=linear", "expected a list of text"),
        ("train.steps", "--set: found 'train.steps', expected KEY=VALUE"),
        ("=3", "expected KEY=VALUE"),
        ("train..steps=3", "expected KEY=VALUE"),
        ("train.steps=[3", "--set: the value of 'train.steps' is not valid YAML"),
        (
            "gate.rules.auc.metrc=f1_macro",
            "did you mean 'gate.rules.auc.metric'",
        ),
    ],
)
def test_a_bad_override_names_the_key_and_touches_nothing(override: str, message: str, params_file: Path) -> None:
    with pytest.raises(UserError) as error:
        put(None, ["train.lora.rank=8", override], params_file)
    assert message in str(error.value)
    assert params_file.read_text() == PARAMS.read_text()


def test_an_unknown_recipe_names_the_nearest(params_file: Path) -> None:
    with pytest.raises(UserError, match=r"no recipe 'ptbxl-tny' in .*; did you mean 'ptbxl-tiny'"):
        put("ptbxl-tny", [], params_file)
    assert params_file.read_text() == PARAMS.read_text()


def test_a_missing_params_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--recipe ecg-tiny"):
        put(None, [], tmp_path / "params.yaml")


def test_errors_in_a_recipe_name_its_file(tmp_path: Path, params_file: Path) -> None:
    folder = tmp_path / "recipes"
    folder.mkdir()
    shutil.copy(RECIPES / "ecg-tiny.yaml", folder)
    (folder / "wrong.yaml").write_text("train:\n  stepz: 3\n")
    (folder / "a.yaml").write_text("extends: b\n")
    (folder / "b.yaml").write_text("extends: a\n")
    (folder / "lost.yaml").write_text("extends: ecg-tny\n")
    with pytest.raises(UserError, match=r"wrong.yaml: unknown key 'train.stepz'"):
        put("wrong", [], params_file, folder)
    with pytest.raises(UserError, match="in a circle: a → b → a"):
        put("a", [], params_file, folder)
    with pytest.raises(UserError, match=r"lost.yaml: extends: no recipe 'ecg-tny'"):
        put("lost", [], params_file, folder)


def test_chains_apply_from_the_ground_up(tmp_path: Path, params_file: Path) -> None:
    folder = tmp_path / "recipes"
    folder.mkdir()
    shutil.copy(RECIPES / "ecg-tiny.yaml", folder)
    (folder / "lower.yaml").write_text("train: {steps: 11, batch_size: 12}\n")
    (folder / "upper.yaml").write_text("# Upper.\nextends: lower\ntrain: {steps: 13}\n")
    put("upper", ["evaluate.resamples=7"], params_file, folder)
    params = load_params(params_file)
    assert (params.recipe, params.train.steps, params.train.batch_size) == ("upper", 13, 12)
    assert params.evaluate.resamples == 7
    assert params_file.read_text().startswith("# Upper.\nrecipe: upper\n")


@settings(max_examples=10, deadline=None)
@given(st.floats(min_value=1e-12, max_value=1e12))
def test_every_float_survives_the_file(value: float) -> None:
    text = resolve("ecg-tiny", [f"train.learning_rate={value!r}"], folder=RECIPES).text
    assert yaml.safe_load(text)["train"]["learning_rate"] == value
