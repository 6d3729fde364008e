"""The chart on a real API server: every object is valid to this cluster's own schemas, and an upgrade from rights to processes is taken."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import CHART, Crabpot
from tests.e2e.harness_cluster import Cluster, missing

FULL = CHART / "ci/full-values.yaml"


def schemas_of(cluster: Cluster, folder: Path) -> str:
    """The API server's OpenAPI as a JSON Schema a kind, closed against unknown fields; where kubeconform finds them."""
    definitions: dict[str, Any] = json.loads(cluster.kubectl("get", "--raw", "/openapi/v2"))["definitions"]
    for name, definition in definitions.items():
        if definition.get("format") == "int-or-string" or name.endswith(".resource.Quantity"):
            definition |= {"type": ["string", "number"]}
        elif "properties" in definition:
            definition["additionalProperties"] = False
    for name, definition in definitions.items():
        for kind in definition.get("x-kubernetes-group-version-kind", ()):
            group = f"-{kind['group'].partition('.')[0]}" if kind["group"] else ""
            schema = {"$ref": f"#/definitions/{name}", "definitions": _needed(definitions, name)}
            (folder / f"{kind['kind'].lower()}{group}-{kind['version']}.json").write_text(json.dumps(schema))
    return str(folder) + "/{{ .ResourceKind }}{{ .KindSuffix }}.json"


def _needed(definitions: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    waiting = [name]
    while waiting:
        wanted = waiting.pop()
        if wanted not in found:
            found[wanted] = definitions[wanted]
            text = json.dumps(definitions[wanted])
            waiting += [part.partition('"')[0] for part in text.split('"#/definitions/')[1:]]
    return found


def helm(cluster: Cluster, *arguments: str) -> str:
    done = subprocess.run(["helm", "--kubeconfig", cluster.kubeconfig, *arguments], text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_object_is_valid_to_the_cluster_s_own_schemas(cluster: Cluster, tmp_path: Path) -> None:
    if shutil.which("kubeconform") is None:
        missing("kubeconform is not on the PATH")
    rendered = helm(cluster, "template", "crab", str(CHART), "--kube-version", "1.36.0", "--values", str(FULL))
    command = ["kubeconform", "-strict", "-summary", "-schema-location", schemas_of(cluster, tmp_path), "-"]
    done = subprocess.run(command, input=rendered, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Invalid: 0, Errors: 0, Skipped: 0" in done.stdout
    broken = rendered.replace("readOnlyRootFilesystem", "readOnlyRootFileSystem")
    assert subprocess.run(command, input=broken, text=True, capture_output=True, check=False).returncode != 0, "this check can fail"


@pytest.mark.timeout(180)
def test_the_api_server_takes_an_upgrade_to_all_processes(crabpot: Crabpot) -> None:
    """Dry, since no node of the tests' cluster can pull an image of ours: helm checks the objects by the server's schemas, and what it would change."""
    given = ("--set", "processes.enabled=true,networkPolicy.enabled=true", "--set", "image.repository=registry.example.com/crabpot")
    needed = ("--set", "redis.url=redis://redis:6379/0", "--set", "serve.apiToken.secret=crabpot-api")
    here = ("--namespace", crabpot.system, "--reuse-values", "--dry-run=server")
    told = helm(crabpot.cluster, "upgrade", "crabpot", str(CHART), *here, *given, *needed)
    assert "kind: Deployment" in told
    assert f"builds run in {crabpot.namespace}" in told
