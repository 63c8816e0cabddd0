"""The images of infra/Dockerfile, read as text: what they install, who runs in them, and what they do not hold."""

from __future__ import annotations

import re
import subprocess
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).resolve().parents[2]
INFRA = REPOSITORY / "infra"
STEPS = [
    line.strip()
    for line in re.sub(r"\\\n", " ", (INFRA / "Dockerfile").read_text()).splitlines()
    if line.strip() and not line.startswith("#")
]


def pins(path: Path) -> dict[str, str]:
    lines = (line.split("#")[0].strip() for line in path.read_text().splitlines())
    found = [line.split("==") for line in lines if line]
    assert all(len(one) == 2 for one in found), "every package is pinned"
    return {name.lower().replace("_", "-"): version for name, version in found}


def stage(name: str) -> list[str]:
    """The steps of one stage."""
    begins = [index for index, step in enumerate(STEPS) if step.startswith("FROM ")]
    (start,) = (index for index in begins if STEPS[index].endswith(f" AS {name}"))
    return STEPS[start : min((index for index in begins if index > start), default=len(STEPS))]


def runs(name: str) -> str:
    return " ".join(step for step in stage(name) if step.startswith("RUN "))


def test_both_kinds_install_the_lock_file_and_nothing_unpinned() -> None:
    for kind in ("cpu", "gpu"):
        installs = re.findall(r"pip install (.+?)(?:&&|$)", runs(f"packages-{kind}"))
        assert any("-r requirements.lock" in one for one in installs), kind
        for one in installs:
            named = re.sub(r'"\$\(grep \S+ requirements.lock\)"|--index-url \S+|-r \S+|--\S+', "", one).split()
            assert not named, f"{kind}: {named} are in no lock file"
    # The version of torch is the lock's in both: nothing else names one.
    assert "'^torch=='" in runs("packages-cpu")
    assert not re.search(r"torch==\d", (INFRA / "Dockerfile").read_text())
    assert "torch" not in pins(INFRA / "requirements-cuda.lock")


def test_the_cuda_lock_is_that_of_this_torch_and_takes_nothing_over() -> None:
    text = (INFRA / "requirements-cuda.lock").read_text()
    lock, cuda = pins(REPOSITORY / "requirements.lock"), pins(INFRA / "requirements-cuda.lock")
    assert set(re.findall(r"torch==(\S+)", text)) == {lock["torch"]}, "made for another torch: make it again"
    assert not set(lock) & set(cuda)
    assert {"triton", "cuda-toolkit", "nvidia-cudnn-cu13", "nvidia-nccl-cu13"} <= set(cuda)


def test_what_torch_needs_with_cuda_is_pinned_as_it_asks() -> None:
    """Where torch is the build with CUDA, its own requirements say so; the build without has none of them."""
    cuda = pins(INFRA / "requirements-cuda.lock")
    wanted = [Requirement(one) for one in metadata.requires("torch") or []]
    needed = [one for one in wanted if one.name.startswith(("nvidia-", "cuda-", "triton"))]
    for one in needed:
        assert one.specifier.contains(cuda[one.name]), one


def test_cpu_has_no_cuda_and_gpu_is_torchs_own_build() -> None:
    assert "--index-url https://download.pytorch.org/whl/cpu" in runs("packages-cpu")
    assert "requirements-cuda.lock" not in runs("packages-cpu")
    assert "index-url" not in runs("packages-gpu")
    assert STEPS[0] == "ARG KIND=cpu"
    assert "FROM packages-${KIND} AS worker" in STEPS


def test_git_and_ssh_are_there_and_no_list_of_packages_stays() -> None:
    step = runs("system")
    assert {"git", "openssh-client", "make"} <= set(step.split())
    assert "--no-install-recommends" in step
    assert "rm -rf /var/lib/apt/lists/*" in step


def test_nobody_is_root_and_the_worker_hears_signals() -> None:
    steps = stage("worker")
    assert [step for step in steps if step.startswith("USER ")] == ["USER ecg"]
    after = steps[steps.index("USER ecg") :]
    assert not any(step.startswith(("RUN ", "COPY ")) for step in after)
    (command,) = (step for step in steps if step.startswith("CMD "))
    assert "exec prefect worker start --pool" in command


def test_no_layer_holds_a_secret() -> None:
    for step in STEPS:
        if step.startswith(("ARG ", "ENV ")):
            assert not re.search("TOKEN|PASSWORD|SECRET|KEY|AUTH", step), step
    copied = [word for step in STEPS if step.startswith("COPY ") for word in step.split()[1:-1]]
    assert set(copied) == {
        *("requirements.lock", "infra/requirements-cuda.lock", "pyproject.toml", "README.md"),
        *("components", "flows", "infra"),
    }
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    assert ignored[-1] == "infra/env"
    assert {line.removeprefix("!").split("/")[0] for line in ignored if line.startswith("!")} == {
        word.split("/")[0] for word in copied
    }


@pytest.mark.parametrize(
    ("asked", "token", "given"),
    [
        ("protocol=https\nhost=git.example.org\n\n", "a-token", True),
        ("protocol=https\nhost=elsewhere.example.org\n\n", "a-token", False),
        ("protocol=http\nhost=git.example.org\n\n", "a-token", False),
        ("protocol=https\nhost=git.example.org\n\n", "", False),
    ],
)
def test_the_token_goes_to_the_repositorys_host_only(asked: str, token: str, given: bool) -> None:
    done = subprocess.run(
        [str(INFRA / "git-token"), "get"],
        input=asked,
        env={"ECG_GIT_TOKEN": token, "ECG_REPOSITORY": "https://git.example.org/team/ecg.git", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == ("username=x-access-token\npassword=a-token\n" if given else "")


def test_git_takes_the_token_from_it() -> None:
    environment = {
        "ECG_GIT_TOKEN": "a-token",
        "ECG_REPOSITORY": "https://git.example.org/team/ecg.git",
        "PATH": "/usr/bin:/bin",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_TERMINAL_PROMPT": "0",
    }
    helper = f"credential.helper={INFRA / 'git-token'}"
    done = subprocess.run(
        ["git", "-c", helper, "credential", "fill"],
        input="url=https://git.example.org/team/ecg.git\n\n",
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "password=a-token" in done.stdout
