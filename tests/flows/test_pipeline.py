"""Every dvc.yaml: a stage depends on all it imports, on the params it reads, and on nothing that is gone."""

from __future__ import annotations

import ast
import functools
from pathlib import Path
from typing import Any

import grimp
import pytest
import yaml

from components.params import Params, load_params

REPOSITORY = Path(__file__).resolve().parents[2]
MAIN: dict[str, dict[str, Any]] = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
RADIOLOGY: dict[str, Any] = yaml.safe_load((REPOSITORY / "radiology" / "dvc.yaml").read_text())
STAGES: dict[str, dict[str, Any]] = MAIN | {f"radiology/{name}": stage for name, stage in RADIOLOGY["stages"].items()}
SECTIONS = set(Params.__dataclass_fields__)
WHERE = "compute"  # says where a stage works, not what it makes: declared, a change of it would run the stage again


@functools.cache
def imports() -> grimp.ImportGraph:
    return grimp.build_graph("components", exclude_type_checking_imports=True, cache_dir=None)


def module_of(stage: str) -> str:
    python, option, module = STAGES[stage]["cmd"].split()
    assert (python, option) == ("python", "-m")
    return str(module)


def file_of(module: str) -> Path:
    path = Path(*module.split("."))
    file = path.with_suffix(".py")
    return file if (REPOSITORY / file).is_file() else path / "__init__.py"


def imported_files(stage: str) -> set[Path]:
    """Every file of components/ that running the stage may execute: imports at any depth, also inside
    functions, and the packages above them where those hold more than a docstring."""
    module = module_of(stage)
    waiting, seen = [module], set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        waiting += imports().find_modules_directly_imported_by(name)
        waiting += [name.rpartition(".")[0]] if "." in name else []
    return {file_of(name) for name in seen if not is_bare(file_of(name))}


def is_bare(path: Path) -> bool:
    """An __init__.py of nothing but a docstring."""
    if path.name != "__init__.py":
        return False
    body = ast.parse((REPOSITORY / path).read_text()).body
    return all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body)


def code_deps(stage: str) -> set[Path]:
    return {Path(dep) for dep in STAGES[stage]["deps"] if dep.startswith("components/")}


def covers(dep: Path, path: Path) -> bool:
    return dep == path or dep in path.parents


@pytest.mark.parametrize("stage", STAGES)
def test_deps_cover_every_import(stage: str) -> None:
    needed = imported_files(stage)
    missing = {path for path in needed if not any(covers(dep, path) for dep in code_deps(stage))}
    wanted = "\n".join(f"      - {path}" for path in sorted(needed))
    assert not missing, f"dvc.yaml of {stage}: add {sorted(map(str, missing))}; it imports\n{wanted}"


@pytest.mark.parametrize("stage", STAGES)
def test_no_code_dep_is_idle(stage: str) -> None:
    needed = imported_files(stage)
    idle = {dep for dep in code_deps(stage) if not any(covers(dep, path) for path in needed)}
    assert not {dep for dep in idle if dep.suffix == ".py" or not is_data(dep)}


def is_data(folder: Path) -> bool:
    """A folder of weights, words or fonts: nothing in it is imported."""
    return (REPOSITORY / folder).exists() and not list((REPOSITORY / folder).rglob("*.py"))


@pytest.mark.parametrize("stage", STAGES)
def test_a_folder_is_a_dep_only_where_the_stage_imports_all_of_it(stage: str) -> None:
    """Else an edit of one stage's code would run another again."""
    needed = imported_files(stage)
    for dep in code_deps(stage):
        if (REPOSITORY / dep).is_dir() and not is_data(dep):
            files = {path.relative_to(REPOSITORY) for path in (REPOSITORY / dep).rglob("*.py")}
            strangers = {path for path in files - needed if not is_bare(path)}
            assert not strangers, f"dvc.yaml of {stage}: list files, not {dep}: it does not import {strangers}"


@pytest.mark.parametrize("stage", STAGES)
def test_params_cover_every_key_the_stage_reads(stage: str) -> None:
    """Whole sections or keys of them, as params.SECTION.KEY in any module of the stage's own package."""
    declared = set(STAGES[stage]["params"])
    assert {key.partition(".")[0] for key in declared} <= SECTIONS
    own = Path(*module_of(stage).split(".")[:2])
    read = set().union(*(params_read(path) for path in imported_files(stage) if own in path.parents))
    assert read
    read = {key for key in read if key.partition(".")[0] != WHERE}
    missing = {key for key in read if not any(f"{key}.".startswith(f"{known}.") for known in declared)}
    assert not missing, f"dvc.yaml of {stage}: params lacks {sorted(missing)}"


def test_where_a_stage_works_runs_nothing_again() -> None:
    for name, stage in STAGES.items():
        assert not [key for key in stage["params"] if str(key).startswith(WHERE)], name
    text = (REPOSITORY / "dvc.yaml").read_text() + (REPOSITORY / "radiology" / "dvc.yaml").read_text()
    assert f"${{{WHERE}" not in text


def params_read(path: Path) -> set[str]:
    """Dotted keys that a file reads off something called `params`, two deep: 'train', 'exams.style'."""
    tree = ast.parse((REPOSITORY / path).read_text())
    chains = {dotted(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    keys = {chain.partition("params.")[2] for chain in chains if "params." in chain}
    keys = {".".join(key.split(".")[:2]) for key in keys if key.split(".")[0] in SECTIONS}
    inner = {key for key in keys if any(other.startswith(f"{key}.") for other in keys)}
    bare = {key for key in inner if f"params.{key}" in bare_uses(tree)}
    return (keys - inner) | bare


def dotted(node: ast.expr) -> str:
    """`self._params.exams.style` as text; load_params() counts as params."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}".replace("_params.", "params.")
    if isinstance(node, ast.Call):
        return dotted(node.func).replace("load_params", "params")
    return node.id if isinstance(node, ast.Name) else "?"


def bare_uses(tree: ast.AST) -> set[str]:
    """Attribute chains that are not the inside of a longer one."""
    inside = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return {dotted(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute) and id(node) not in inside}


def test_every_data_dep_is_made_by_a_stage_or_is_the_source() -> None:
    made = {out if isinstance(out, str) else next(iter(out)) for stage in STAGES.values() for out in outs(stage)}
    for name, stage in STAGES.items():
        for dep in stage["deps"]:
            if not dep.startswith(("components/", "infra/")):
                assert dep in made | {"${records.source_dir}"}, f"{name}: {dep}"


def outs(stage: dict[str, Any]) -> list[Any]:
    return [out for kind in ("outs", "metrics", "plots") for out in stage.get(kind, [])]


def test_no_two_stages_make_the_same_out() -> None:
    made = [Path(out) for stage in STAGES.values() for out in outs(stage)]
    assert not [(a, b) for a in made for b in made if a is not b and (a == b or a in b.parents)]


def test_the_pipeline_in_a_folder_works_from_the_root() -> None:
    assert RADIOLOGY["vars"] == ["../params.yaml"]
    assert {stage["wdir"] for stage in RADIOLOGY["stages"].values()} == {".."}


def test_a_pipeline_takes_nothing_from_the_other() -> None:
    """Else one recipe would have to bring both up to date."""
    made = {out for stage in MAIN.values() for out in outs(stage)}
    assert not [dep for stage in RADIOLOGY["stages"].values() for dep in stage["deps"] if dep in made]


def test_every_out_is_kept_in_the_cache() -> None:
    """Else the run cache cannot restore it."""
    assert all(isinstance(out, str) for stage in STAGES.values() for out in outs(stage))


def test_the_flow_waits_for_what_a_stage_needs() -> None:
    """Every edge of dvc.yaml's graph is one of flows.retrain's, directly or through others, and none is missing."""
    makers = {out: name for name, stage in MAIN.items() for out in outs(stage)}
    waits = flow_edges()
    assert list(waits) == list(MAIN)
    for name, stage in MAIN.items():
        needed = {makers[dep] for dep in stage["deps"] if dep in makers}
        assert needed <= ancestors(name, waits), f"flows/retrain.py starts {name} too early"


def flow_edges() -> dict[str, list[str]]:
    """Stage -> stages it waits for, from the assignments `x = start("stage", y, …)` of flows.retrain."""
    tree = ast.parse((REPOSITORY / "flows" / "retrain.py").read_text())
    stages: dict[str, str] = {}
    waits: dict[str, list[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            call, (target,) = node.value, node.targets
            if isinstance(call.func, ast.Name) and call.func.id == "start" and isinstance(target, ast.Name):
                name, *earlier = (ast.literal_eval(call.args[0]), *call.args[1:])
                waits[name] = [stages[one.id] for one in earlier if isinstance(one, ast.Name)]
                stages[target.id] = name
    return waits


def ancestors(stage: str, waits: dict[str, list[str]]) -> set[str]:
    return set(waits[stage]).union(*(ancestors(one, waits) for one in waits[stage]))


def test_every_shipped_file_beside_the_code_is_a_dep_of_some_stage() -> None:
    """Weights, words and fonts in components/ change what the stages make."""
    deps = set().union(*(code_deps(stage) for stage in STAGES))
    files = [path.relative_to(REPOSITORY) for path in (REPOSITORY / "components").rglob("*") if path.is_file()]
    shipped = [path for path in files if path.suffix not in {".py", ".pyc"}]
    assert [path for path in shipped if not any(covers(dep, path) for dep in deps)] == []


def test_the_default_source_is_here() -> None:
    source = REPOSITORY / load_params(REPOSITORY / "params.yaml").records.source_dir
    assert (source / "cohort.yaml").is_file()
