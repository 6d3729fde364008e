"""The cluster that end-to-end tests run on, as its administrator sees it, and tokens of the accounts that crabpot's processes use."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml

ROOT = Path(__file__).parents[2]
VARIABLES = ("KUBECONFIG", "CLUSTER_REGISTRY", "CLUSTER_HOST", "CLUSTER_KANIKO_IMAGE", "CLUSTER_KANIKO")
"""What `cluster env` exports; another cluster than the project's own needs them set by hand."""
T = TypeVar("T")


def missing(why: str) -> None:
    """Skip; but where end-to-end tests were asked for (CI, `make e2e`), their absence is an error and never a green run."""
    if os.environ.get("CI") or os.environ.get("CRABPOT_E2E"):
        pytest.fail(f"end-to-end tests were asked for, but {why}", pytrace=False)
    pytest.skip(why)


def until(look: Callable[[], T | None], what: str | Callable[[], str], seconds: float = 30.0) -> T:
    """Ask an outside system until it answers with something; what it answered."""
    end = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > end:
            raise AssertionError(f"{what if isinstance(what, str) else what()}: not within {seconds:g} s")
        time.sleep(0.05)
    return found


@dataclass(frozen=True)
class Cluster:
    """The cluster's addresses, and kubectl as its administrator."""

    kubeconfig: str
    registry: str
    host: str
    """This machine, as pods reach it."""
    executor_image: str
    kaniko: str

    @classmethod
    def from_environment(cls) -> Cluster:
        if not os.environ.get("KUBECONFIG"):
            missing("KUBECONFIG is not set; run `../shared/cluster/cluster up` and eval the output of `cluster env` and `cluster forge`")
        unset = [name for name in VARIABLES if not os.environ.get(name)]
        if unset:
            missing(f"{', '.join(unset)} not set beside KUBECONFIG; eval the output of `cluster env`")
        for program in ("kubectl", "helm"):
            if shutil.which(program) is None:
                missing(f"{program} is not on the PATH; eval the output of `cluster env`")
        return cls(*(os.environ[name] for name in VARIABLES))

    @property
    def real(self) -> bool:
        """Whether the executor is Kaniko itself, not the stand-in."""
        return self.kaniko == "real"

    def kubectl(self, *arguments: str, stdin: str | None = None, kubeconfig: Path | None = None, missing_ok: bool = False) -> str:
        command = ["kubectl", "--kubeconfig", str(kubeconfig or self.kubeconfig), *arguments]
        done = subprocess.run(command, input=stdin, text=True, capture_output=True, check=False, timeout=90)
        gone = missing_ok and "(NotFound)" in done.stderr
        assert done.returncode == 0 or gone, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    def apply(self, namespace: str, *objects: Mapping[str, Any]) -> None:
        text = yaml.safe_dump_all([{"apiVersion": "v1", **found} for found in objects])
        self.kubectl("--namespace", namespace, "apply", "--filename", "-", stdin=text)

    def get(self, namespace: str, *what: str) -> dict[str, Any] | None:
        found = self.kubectl("--namespace", namespace, "get", *what, "--ignore-not-found", "--output", "json")
        return json.loads(found) if found else None

    def rights(self, kubeconfig: Path, namespace: str) -> set[str]:
        """All that the account of a kubeconfig may do in a namespace, as "get pods/log" or "get secrets:name"; besides asking about itself."""
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": {"namespace": namespace}}
        raw = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
        status = json.loads(self.kubectl("create", "--raw", raw, "--filename", "-", stdin=json.dumps(review), kubeconfig=kubeconfig))[
            "status"
        ]
        assert not status.get("incomplete")
        found = set()
        for rule in status["resourceRules"]:
            if set(rule["apiGroups"]) <= {"authorization.k8s.io", "authentication.k8s.io"}:
                continue
            names = [f":{name}" for name in rule.get("resourceNames") or ()] or [""]
            found |= {f"{verb} {resource}{name}" for verb in rule["verbs"] for resource in rule["resources"] for name in names}
        return found

    def kubeconfig_of(self, namespace: str, account: str, path: Path) -> Path:
        """Write a kubeconfig that holds a token of a service account and nothing of the administrator's."""
        token = self.kubectl("--namespace", namespace, "create", "token", account, "--duration", "2h").strip()
        given = json.loads(self.kubectl("config", "view", "--raw", "--minify", "--flatten", "--output", "json"))
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": given["clusters"],
            "users": [{"name": account, "user": {"token": token}}],
            "contexts": [{"name": account, "context": {"cluster": given["clusters"][0]["name"], "user": account}}],
            "current-context": account,
        }
        path.touch(0o600)
        path.write_text(json.dumps(config))
        return path

    def node(self) -> str:
        """A node that has a kubelet: the crowd's run nothing."""
        return self.kubectl("get", "nodes", "--selector", "crowd!=true", "--output", "jsonpath={.items[0].metadata.name}")

    @contextmanager
    def namespaces(self, *names: str) -> Iterator[None]:
        """Delete these at the end, with whatever is left in them."""
        try:
            yield
        finally:
            self.kubectl("delete", "namespace", *names, "--ignore-not-found", "--wait=false")

    def ctr(self, *arguments: str) -> str:
        """The node's containerd; only the project's own cluster has it at hand, on this machine."""
        program = os.environ.get("CLUSTER") or str(ROOT.parent / "shared/cluster/cluster")
        if not os.access(program, os.X_OK):
            missing("the node's containerd is not at hand (set CLUSTER to the project's cluster script)")
        done = subprocess.run([program, "ctr", *arguments], text=True, capture_output=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout
