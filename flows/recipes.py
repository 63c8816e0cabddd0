"""Recipes: an overlay chain resolved into params.yaml, the recipe in force.

`recipes/ecg-tiny.yaml` is the whole documented default; every other recipe names what it extends
(`extends: NAME`) and only the keys it changes. `--set a.b=c` is one more overlay on top. A result
is checked as a whole before params.yaml is touched.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq
from ruamel.yaml.error import YAMLError
from ruamel.yaml.representer import RoundTripRepresenter

from components.params import PARAMS_FILE, Params, UserError, load_yaml, nearest, parse_params
from components.storage import write_text

RECIPES = Path("recipes")
DEFAULT_RECIPE = "ecg-tiny"


@dataclass(frozen=True, slots=True)
class Change:
    """One key of params.yaml that a resolution changed; `old` is None for a key that is new."""

    key: str
    old: Any
    new: Any


@dataclass(frozen=True, slots=True)
class Recipe:
    name: str
    extends: str | None
    summary: str  # the first comment line of its file


@dataclass(frozen=True, slots=True)
class Resolution:
    """A recipe with its overrides: the checked params, params.yaml's new text, and what changes in it."""

    params: Params
    text: str
    changes: tuple[Change, ...]

    def put_in_force(self, params_file: Path = PARAMS_FILE) -> None:
        """Write `params_file`, whole or not at all; a file that says the same already is left alone."""
        if not params_file.exists() or params_file.read_text() != self.text:
            write_text(params_file, self.text)


def resolve(
    recipe: str | None, overrides: Sequence[str] = (), params_file: Path = PARAMS_FILE, folder: Path = RECIPES
) -> Resolution:
    """Resolve `recipe` (None: what is in force) with `overrides` (`a.b=c`); nothing is written.

    Raises:
        UserError: unknown recipe, unknown key, wrong type, malformed override; names the file or option.
    """
    if recipe is None:
        if not params_file.exists():
            raise UserError(f"{params_file}: is missing; name a recipe to put in force, as `--recipe {DEFAULT_RECIPE}`")
        document, header = params_file, _header(params_file)
        layers = [(str(params_file), load_yaml(params_file))]
    else:
        chain = _chain(recipe, folder)
        document, header = _file(chain[0][0], folder), _header(_file(recipe, folder))
        layers = [(str(_file(name, folder)), tree) for name, tree in chain]
    layers += [("--set", _override(text)) for text in overrides]

    yaml = _round_trip()
    tree = yaml.load(document.read_text())
    for depth, (origin, layer) in enumerate(layers):
        if depth > 0:  # the first is the document itself, with its comments
            _merge(tree, layer)
        parse_params(tree, origin)
    if recipe is not None:
        tree["recipe"] = recipe
    stream = io.StringIO()
    yaml.dump(tree, stream)
    body = stream.getvalue().splitlines()[len(_header(document)) :]
    text = "\n".join([*header, *body]) + "\n"

    resolved = _parse(text, str(params_file))
    before, after = _flat(_in_force(params_file)), _flat(resolved)
    changes = tuple(Change(key, before.get(key), new) for key, new in after.items() if before.get(key) != new)
    return Resolution(parse_params(resolved, str(params_file)), text, changes)


def list_recipes(folder: Path = RECIPES) -> list[Recipe]:
    """Every recipe of `folder`, by name."""
    return [
        Recipe(
            name,
            load_yaml(_file(name, folder)).get("extends"),
            next(iter(_header(_file(name, folder))), "").lstrip("# "),
        )
        for name in _names(folder)
    ]


def _chain(recipe: str, folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """The recipe and what it extends, from the whole default upwards, without the `extends` keys."""
    chain: list[tuple[str, dict[str, Any]]] = []
    name: str | None = recipe
    while name is not None:
        if name not in _names(folder):
            origin = f"{_file(chain[-1][0], folder)}: extends" if chain else "--recipe"
            raise UserError(f"{origin}: no recipe '{name}' in {folder}/{nearest(name, _names(folder))}")
        if name in [seen for seen, _ in chain]:
            circle = " → ".join([*(seen for seen, _ in chain), name])
            raise UserError(f"{_file(name, folder)}: recipes extend each other in a circle: {circle}")
        tree = load_yaml(_file(name, folder))
        chain.append((name, tree))
        name = tree.pop("extends", None if name == DEFAULT_RECIPE else DEFAULT_RECIPE)
    return chain[::-1]


def _override(text: str) -> dict[str, Any]:
    """`a.b=c` as the overlay {a: {b: c}}; the value is read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(f"--set: found '{text}', expected KEY=VALUE, as train.lora.rank=8")
    try:
        tree = YAML(typ="safe", pure=True).load(value)
    except YAMLError as error:
        raise UserError(f"--set: the value of '{key}' is not valid YAML: {value!r}") from error
    for part in reversed(key.split(".")):
        tree = {part: tree}
    return dict(tree)


def _merge(tree: Any, overlay: Mapping[str, Any]) -> None:
    for key, value in overlay.items():
        if isinstance(value, Mapping) and isinstance(tree.get(key), Mapping):
            _merge(tree[key], value)
        elif isinstance(value, list):
            tree[key] = _one_line(value)
        else:
            tree[key] = value


def _one_line(values: list[Any]) -> CommentedSeq:
    sequence = CommentedSeq(values)
    sequence.fa.set_flow_style()
    return sequence


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _in_force(params_file: Path) -> dict[str, Any]:
    """What stands in `params_file`; nothing when it is missing or broken, so that a recipe can mend it."""
    try:
        return load_yaml(params_file)
    except UserError:
        return {}


def _parse(text: str, origin: str) -> dict[str, Any]:
    """As the stages will read it (PyYAML), whatever wrote it (ruamel)."""
    import yaml

    tree = yaml.safe_load(text)
    if not isinstance(tree, dict):
        raise UserError(f"{origin}: found {type(tree).__name__} at the top, expected a mapping of sections")
    return tree


def _names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))


def _file(name: str, folder: Path) -> Path:
    return folder / f"{name}.yaml"


def _header(path: Path) -> list[str]:
    """The comment lines a YAML file opens with."""
    lines = path.read_text().splitlines()
    count = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return lines[:count]


class _Representer(RoundTripRepresenter):
    """Writes floats so that YAML 1.1 readers (PyYAML, DVC) see a number: 1.0e-05, not 1e-05."""

    def represent_float(self, data: Any) -> Any:
        node = super().represent_float(data)
        mantissa, exponent, power = node.value.partition("e")
        if exponent and "." not in mantissa:
            node.value = f"{mantissa}.0e{power}"
        return node

    def represent_none(self, data: None) -> Any:
        return self.represent_scalar("tag:yaml.org,2002:null", "null")


_Representer.add_representer(float, _Representer.represent_float)
_Representer.add_representer(type(None), _Representer.represent_none)


def _round_trip() -> YAML:
    yaml = YAML()
    yaml.Representer = _Representer
    yaml.width = 10_000
    yaml.preserve_quotes = True
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml
