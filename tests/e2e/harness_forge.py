"""The forge (Gitea) as a person uses it: repositories, webhooks by its API, and `git push`."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from tests.e2e.harness_cluster import missing

OWNER = "crab"
"""The forge's administrator, whose token CLUSTER_FORGE_TOKEN is."""


@dataclass(frozen=True)
class Forge:
    url: str
    token: str

    @classmethod
    def from_environment(cls) -> Forge:
        url, token = os.environ.get("CLUSTER_FORGE"), os.environ.get("CLUSTER_FORGE_TOKEN")
        if not url or not token:
            missing("CLUSTER_FORGE and CLUSTER_FORGE_TOKEN are not set; eval the output of `cluster forge`")
        assert url
        assert token
        return cls(url, token)

    def call(self, method: str, path: str, body: Any = None) -> httpx.Response:
        headers = {"Authorization": f"token {self.token}"}
        return httpx.request(
            method, f"{self.url}/api/v1/{path}", json=body, headers=headers, trust_env=False, timeout=30
        ).raise_for_status()

    def create(self, name: str, folder: Path, *, private: bool = False) -> Repository:
        self.call("POST", "user/repos", {"name": name, "private": private, "default_branch": "main"})
        return Repository(self, name, folder)


class Repository:
    """A repository of the forge with a clone on this machine."""

    def __init__(self, forge: Forge, name: str, folder: Path) -> None:
        self.forge, self.name, self.folder = forge, f"{OWNER}/{name}", folder
        self.url = f"{forge.url}/{self.name}.git"
        self.git("init", "--quiet", "--initial-branch", "main", str(folder), cwd=folder.parent)

    def git(self, *arguments: str, cwd: Path | None = None) -> str:
        """git, untouched by this machine's configuration."""
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder.parent),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            **{
                f"GIT_{who}_{what}": value
                for who in ("AUTHOR", "COMMITTER")
                for what, value in (("NAME", "e2e"), ("EMAIL", "e2e@localhost"))
            },
        }
        done = subprocess.run(
            ["git", *arguments], cwd=cwd or self.folder, env=environment, text=True, capture_output=True, check=False, timeout=60
        )
        assert done.returncode == 0, f"git {arguments[0]}: {done.stderr}"
        return done.stdout.strip()

    @property
    def push_url(self) -> str:
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{OWNER}:{self.forge.token}@{parts.netloc}{parts.path}"

    def commit(self, files: Mapping[str, str], message: str = "a change") -> str:
        """Write files and commit them; the commit's hash."""
        for name, text in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", message)
        return self.git("rev-parse", "HEAD")

    def push(self, ref: str = "refs/heads/main") -> None:
        self.git("push", "--quiet", self.push_url, f"HEAD:{ref}")

    def add_webhook(self, url: str, secret: str) -> None:
        """A webhook of the forge's own kind, signed with the secret."""
        body = {
            "type": "gitea",
            "active": True,
            "events": ["push"],
            "config": {"url": url, "content_type": "json", "secret": secret},
        }
        self.forge.call("POST", f"repos/{self.name}/hooks", body)

    def delete(self) -> None:
        self.forge.call("DELETE", f"repos/{self.name}")
