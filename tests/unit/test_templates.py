"""`crabpot init`: each template is a Dockerfile that Kaniko reads, on a base that distroless publishes; and no file is lost."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ledger.errors import FileInTheWay, RequestInvalid
from producer.cli.init import NEEDS, init, template

KANIKO = frozenset(
    [
        "ADD",
        "ARG",
        "CMD",
        "COPY",
        "ENTRYPOINT",
        "ENV",
        "EXPOSE",
        "FROM",
        "HEALTHCHECK",
        "LABEL",
        "ONBUILD",
        "RUN",
        "SHELL",
        "STOPSIGNAL",
        "USER",
        "VOLUME",
        "WORKDIR",
    ]
)
"""What kaniko 1.28 knows (pkg/commands/commands.go)."""
DISTROLESS = frozenset(
    f"gcr.io/distroless/{name}-debian13"
    for name in [
        "static",
        "base",
        "base-nossl",
        "cc",
        "java-base",
        "java17",
        "java21",
        "java25",
        "nodejs22",
        "nodejs24",
        "nodejs26",
        "python3",
    ]
)
"""What distroless publishes for Debian 13 (its README, August 2026), each with the tags latest, nonroot, debug and debug-nonroot."""
LANGUAGES = sorted(NEEDS)


@dataclass(frozen=True)
class Instruction:
    name: str
    rest: str

    @property
    def variables(self) -> set[str]:
        return set(re.findall(r"\$\{?([A-Za-z_]\w*)", self.rest))


def parse(text: str) -> list[Instruction]:
    """The instructions of a Dockerfile: comments left out, continued lines joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines()
    return [Instruction(*line.split(maxsplit=1)) for line in joined]


def stages(instructions: list[Instruction]) -> list[list[Instruction]]:
    """What stands before the first FROM, and then each stage with its FROM."""
    found: list[list[Instruction]] = [[]]
    for one in instructions:
        if one.name == "FROM":
            found.append([])
        found[-1].append(one)
    return found


@pytest.fixture(params=LANGUAGES)
def dockerfile(request) -> list[list[Instruction]]:
    return stages(parse(template(request.param)["Dockerfile"]))


def arguments(stage: list[Instruction]) -> dict[str, str]:
    return dict(one.rest.partition("=")[::2] for one in stage if one.name == "ARG")


def test_every_instruction_is_one_that_kaniko_knows(dockerfile: list[list[Instruction]]) -> None:
    for one in (one for stage in dockerfile for one in stage):
        assert one.name in KANIKO
        assert "<<" not in one.rest, "a here-document is BuildKit's"
        flags = re.findall(r"(?:^|\s)--([a-z]+)", one.rest) if one.name in ("COPY", "ADD") else re.findall(r"^--([a-z]+)", one.rest)
        assert set(flags) <= {"from", "chown", "chmod"}


def test_what_an_instruction_uses_is_declared_where_it_stands(dockerfile: list[list[Instruction]]) -> None:
    first, *rest = dockerfile
    names = {one.rest.partition(" AS ")[2] for stage in rest for one in stage if one.name == "FROM"} - {""}
    for stage in rest:
        declared: set[str] = set()
        for one in stage:
            known = set(arguments(first)) if one.name == "FROM" else declared
            assert one.variables <= known, one
            if one.name == "ARG":
                declared.add(one.rest.partition("=")[0])
        assert {one.rest.split()[0].partition("=")[2] for one in stage if one.rest.startswith("--from=")} <= names


def test_it_is_built_in_one_stage_and_runs_in_another_that_has_no_root(dockerfile: list[list[Instruction]]) -> None:
    first, build, last = dockerfile
    assert list(arguments(first)) == ["BUILD_BASE", "RUNTIME_BASE"]
    assert build[0] == Instruction("FROM", "${BUILD_BASE} AS build")
    assert last[0] == Instruction("FROM", "${RUNTIME_BASE}")
    assert "RUN" not in {one.name for one in last}, "distroless has no shell to run anything"
    assert [one.rest for one in last if one.name == "USER"] == ["65532:65532"]
    assert isinstance(json.loads(next(one.rest for one in last if one.name == "ENTRYPOINT")), list)
    labels = next(one.rest for one in last if one.name == "LABEL")
    assert 'org.opencontainers.image.title="app"' in labels
    assert 'org.opencontainers.image.base.name="${RUNTIME_BASE}"' in labels


def test_the_bases_are_published_and_fit_each_other(dockerfile: list[list[Instruction]]) -> None:
    given = arguments(dockerfile[0])
    name, _, tag = given["RUNTIME_BASE"].partition(":")
    assert (name in DISTROLESS, tag) == (True, "nonroot")
    assert given["BUILD_BASE"].startswith("docker.io/library/")
    # Temurin's is an Ubuntu, of which nothing but a JAR is taken.
    assert "trixie" in given["BUILD_BASE"] or "temurin" in given["BUILD_BASE"]
    number = re.search(r"(?:java|nodejs)(\d+)", name)
    assert number is None or number[1] in re.findall(r"\d+", given["BUILD_BASE"])


@pytest.mark.parametrize("language", sorted(set(LANGUAGES) - {"c"}))
def test_a_change_of_the_sources_fetches_no_dependency_again(language: str) -> None:
    build = stages(parse(template(language)["Dockerfile"]))[1]
    copies = [number for number, one in enumerate(build) if one.name == "COPY"]
    assert NEEDS[language][0] in build[copies[0]].rest
    assert build[copies[0] + 1].name == "RUN"
    assert not any(one.rest == ". ." for one in build[: copies[0] + 2])


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_build_is_sent_no_history_and_no_secrets_but_what_it_needs(language: str) -> None:
    ignored = template(language)[".dockerignore"].splitlines()
    assert {".git", "**/.env", "**/*.pem", "**/*.key"} <= set(ignored)
    assert not {need.rstrip("/") for need in NEEDS[language]} & {line.rstrip("/") for line in ignored}


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_says_which_base_it_has_and_why(language: str) -> None:
    text = template(language)["Dockerfile"]
    assert "\n# Why this base: " in text
    assert "\n# It expects: " in text
    for need in NEEDS[language]:
        assert need in text
    page = (Path(__file__).parents[2] / "docs/dockerfiles.md").read_text()
    for base in arguments(stages(parse(text))[0]).values():
        assert f"`{base.removeprefix('docker.io/library/')}`" in page


# The command


def run(*given: str) -> Result:
    return CliRunner().invoke(init, given)


def test_it_writes_two_files_and_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").touch()
    done = run("python", "--directory", str(tmp_path))
    assert done.exit_code == 0
    assert done.stdout.splitlines() == [str(tmp_path / "Dockerfile"), str(tmp_path / ".dockerignore")]
    assert "main.py, and it is not there yet" in done.stderr
    assert {path.name: path.read_text() for path in tmp_path.iterdir() if path.name != "requirements.txt"} == template("python")


@pytest.mark.parametrize("present", ["Dockerfile", ".dockerignore"])
def test_a_file_that_is_there_is_left_and_nothing_is_written(tmp_path: Path, present: str) -> None:
    (tmp_path / present).write_text("mine")
    done = run("go", "--directory", str(tmp_path))
    assert isinstance(done.exception, FileInTheWay)
    assert str(tmp_path / present) in str(done.exception)
    assert "--force" in str(done.exception)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {present: "mine"}


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    """Neither to a file elsewhere, which is not ours to change, nor to one that is not there."""
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.write_text("mine")
    (folder / "Dockerfile").symlink_to(elsewhere)
    (folder / ".dockerignore").symlink_to(tmp_path / "nowhere")
    assert isinstance(run("go", "--directory", str(folder)).exception, FileInTheWay)
    assert run("go", "--force", "--directory", str(folder)).exit_code == 0
    assert elsewhere.read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()
    assert {path.name: path.read_text() for path in folder.iterdir()} == template("go")


def test_force_writes_over(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("old")
    assert run("go", "--force", "--directory", str(tmp_path)).exit_code == 0
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == template("go")
    assert (tmp_path / "Dockerfile").stat().st_mode & 0o777 == 0o644


def test_an_unknown_language_is_told_with_those_that_there_are(tmp_path: Path) -> None:
    done = run("cobol", "--directory", str(tmp_path))
    assert done.exit_code == 2
    for language in LANGUAGES:
        assert f"'{language}'" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "said"), [("none", "mkdir -p"), ("file", "this is a file")])
def test_a_folder_that_is_none(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "file").touch()
    error = run("go", "--directory", str(tmp_path / name)).exception
    assert isinstance(error, RequestInvalid)
    assert error.problems[0].path == "--directory"
    assert said in str(error)
