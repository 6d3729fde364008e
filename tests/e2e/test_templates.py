"""The Dockerfile that `crabpot init go` writes, built by Kaniko from a source that has nothing but it, go.mod and a program."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from producer.cli.init import init
from tests.e2e.harness import Crabpot
from tests.e2e.harness_toolchain import push_golang

PROGRAM = 'package main\n\nimport "fmt"\n\nfunc main() { fmt.Println("built by crabpot") }\n'


def test_the_go_template_builds_a_static_program_that_runs_as_nobody(crabpot: Crabpot, tmp_path: Path) -> None:
    if not crabpot.cluster.real:
        pytest.skip("the stand-in does not keep what RUN changes, so it compiles nothing; real Kaniko only")
    source = tmp_path / "source"
    source.mkdir()
    (source / "go.mod").write_text("module example.com/app\n\ngo 1.21\n")
    (source / "main.go").write_text(PROGRAM)
    assert CliRunner().invoke(init, ["go", "--directory", str(source)]).exit_code == 0
    toolchain, runtime = push_golang(crabpot.cluster.registry, source), f"{crabpot.cluster.registry}/base/busybox:1"
    files = {path.name: path.read_text() for path in source.iterdir()}
    assert set(files) == {"Dockerfile", ".dockerignore", "go.mod", "main.go"}
    build = crabpot.submit(
        crabpot.request(
            "go-template",
            source=crabpot.config_map("go-template", files),
            build_args={"BUILD_BASE": toolchain, "RUNTIME_BASE": runtime},
            resources={"memory": "1Gi"},
        )
    )
    image = crabpot.pushed(crabpot.succeed(build, 120))
    assert image.config["config"]["User"] == "65532:65532"
    assert image.config["config"]["Entrypoint"] == ["/app"]
    assert image.labels["org.opencontainers.image.title"] == "app"
    assert image.labels["org.opencontainers.image.base.name"] == runtime
    assert not [path for path in image.files if path.startswith(("/usr/local/go", "/src"))], "the toolchain stays in the first stage"
    program = tmp_path / "app"
    program.write_bytes(image.files["/app"])
    program.chmod(0o755)
    # On this machine, which is as good as none to a static file.
    assert subprocess.run([program], text=True, capture_output=True, check=True, timeout=10).stdout == "built by crabpot\n"
