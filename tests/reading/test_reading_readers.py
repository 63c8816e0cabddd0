"""Several adapters by name, those of one base on one copy of it."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from served_adapters import make_adapter, recipe

from components.instruct.questions import superclass_question
from components.models.export import probe_page
from components.params import Params, UserError
from components.reading.reader import Reader
from components.reading.readers import Readers

QUESTION = superclass_question("MI")


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> Params:
    return recipe(tmp_path_factory.mktemp("registry"))


@pytest.fixture(scope="module")
def folders(params: Params, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {name: make_adapter(root / name / "adapter", params, seed, 0.1) for seed, name in enumerate(("a", "b"))}


def p_yes(reader: Reader) -> float:
    return float(reader.score([probe_page()], [QUESTION]).p_yes[0, 0])


def test_each_answers_as_it_does_alone_and_the_base_is_there_once(folders: dict[str, Path]) -> None:
    alone = {name: p_yes(Reader.load("ecg-tiny", folder)) for name, folder in folders.items()}
    assert abs(alone["a"] - alone["b"]) > 1e-3
    readers = Readers()
    for name, folder in folders.items():
        readers.add(name, folder)
    assert (readers.names, readers.bases) == (["a", "b"], 1)
    for name in ("a", "b", "a"):
        with readers.using(name) as reader:
            assert p_yes(reader) == pytest.approx(alone[name], abs=1e-6)
            parameters = reader.base.model.named_parameters()
            base = sum(parameter.numel() for key, parameter in parameters if "lora_" not in key)
    assert base < 2_300_000  # one copy of 2.2 million

    readers.remove("a")
    with readers.using("b") as reader:
        assert p_yes(reader) == pytest.approx(alone["b"], abs=1e-6)
    readers.remove("b")
    assert (readers.names, readers.bases) == ([], 0)


def test_threads_take_turns(folders: dict[str, Path]) -> None:
    readers = Readers()
    for name, folder in folders.items():
        readers.add(name, folder)
    expected = {}
    for name in folders:
        with readers.using(name) as reader:
            expected[name] = p_yes(reader)
    found: list[tuple[str, float]] = []

    def ask(name: str) -> None:
        for _ in range(3):
            with readers.using(name) as reader:
                found.append((name, p_yes(reader)))

    threads = [threading.Thread(target=ask, args=(name,)) for name in ("a", "b", "a")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 9
    np.testing.assert_allclose([p for _, p in found], [expected[name] for name, _ in found], atol=1e-6)


def test_what_is_refused_leaves_nothing_behind(folders: dict[str, Path], tmp_path: Path) -> None:
    readers = Readers()
    readers.add("a", folders["a"])
    with pytest.raises(UserError, match="'a' is loaded already"):
        readers.add("a", folders["b"])
    with pytest.raises(UserError, match="no adapter folder there"):
        readers.add("b", tmp_path / "none")
    with pytest.raises(UserError, match="'aa' is not loaded; did you mean 'a'"), readers.using("aa"):
        pass
    with pytest.raises(UserError, match="'b' is not loaded"):
        readers.remove("b")
    assert (readers.names, readers.bases) == (["a"], 1)
