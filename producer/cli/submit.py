"""`crabpot submit`: a request from options, from a file, or from a file with options over it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, TextIO

import click
import yaml

from ledger.console import say_json
from ledger.documents import read_yaml
from ledger.errors import RequestInvalid
from producer.cli.builds import await_end
from producer.cli.client import connected

_GIT_SECONDS = 60


@click.command()
@click.option("--project", help="The project, as the projects file names it.")
@click.option("--git", "url", help="The repository's clone URL.")
@click.option("--ref", help="The full ref, as refs/heads/main.")
@click.option("--commit", help="The commit; by default what the ref points to now.")
@click.option("-t", "--image", "images", multiple=True, help="An image with its tag; may be given several times.")
@click.option("--dockerfile", help="The Dockerfile's path below the context.")
@click.option("--target", help="The stage to build.")
@click.option("--build-arg", "build_args", multiple=True, metavar="NAME=VALUE", help="May be given several times.")
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="May be given several times.")
@click.option("--priority", type=int, help="Within the project: a point is worth a minute of waiting.")
@click.option("--concurrency-key", help="Of the project's builds with this key only so many run at once.")
@click.option(
    "--file", "file", type=click.File("r"), help="A request as YAML or JSON (docs/requests.md); - reads standard input. Options go over it."
)
@click.option("--idempotency-key", help="A repeat with the same key gives the first build.")
@click.option(
    "--timeout", type=click.FloatRange(0), default=0.0, help="Seconds to go on trying while Redis is away or the project's queue is full."
)
@click.option("--wait", is_flag=True, help="Wait for the end; the exit code tells it.")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def submit(
    project: str | None, url: str | None, ref: str | None, commit: str | None, images: Sequence[str], dockerfile: str | None, target: str | None,
    build_args: Sequence[str], labels: Sequence[str], priority: int | None, concurrency_key: str | None, file: TextIO | None, idempotency_key: str | None, timeout: float, wait: bool, as_json: bool,
) -> None:  # fmt: skip
    """Queue a build; prints its id."""
    request = _read(file) if file else {}
    if url:
        request["source"] = {"kind": "git", "url": url, "commit": commit or _resolve(url, ref), **({"ref": ref} if ref else {})}
    elif ref or commit:
        raise click.UsageError("--ref and --commit need --git URL")
    given: dict[str, Any] = {
        "project": project,
        "destinations": list(images),
        "dockerfile": dockerfile,
        "target": target,
        "priority": priority,
        "concurrency_key": concurrency_key,
    }
    given |= {"build_args": _pairs("--build-arg", build_args), "labels": _pairs("--label", labels)}
    request |= {name: value for name, value in given.items() if value not in (None, [], {})}
    with connected() as client:
        build = client.submit(request, idempotency_key, timeout)
        if as_json and not wait:
            say_json(build)
        elif not as_json:
            click.echo(build["id"])
        if wait:
            sys.exit(await_end(client, build["id"], None, as_json=as_json))


def _read(file: TextIO) -> dict[str, Any]:
    try:
        found = read_yaml(file.read())
        json.dumps(found)  # an alias within itself has no JSON
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RequestInvalid(f"{file.name} is neither YAML nor JSON: {error}") from None
    if not isinstance(found, dict):
        raise RequestInvalid(f"{file.name} must hold a request as a mapping; docs/requests.md lists its fields")
    return found


def _pairs(option: str, given: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise click.UsageError(f"{option} takes NAME=VALUE, not {text!r}")
        pairs[name] = value
    return pairs


def _resolve(url: str, ref: str | None) -> str:
    """The commit that a ref points to now, as `git ls-remote` says it."""
    name = ref or "HEAD"
    try:
        found = subprocess.run(
            ["git", "ls-remote", "--exit-code", "--", url, name, f"{name}^{{}}"],
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RequestInvalid(f"the commit of {name} could not be asked for ({error}); give it with --commit") from None
    if found.returncode:
        raise RequestInvalid(
            f"{url} has no {name}, or cannot be read ({found.stderr.strip() or 'no such ref'}); give the commit with --commit"
        )
    # git answers with every ref whose name ends so: HEAD also finds refs/remotes/origin/HEAD.
    commits = {told: commit for commit, _, told in (line.partition("\t") for line in found.stdout.splitlines())}
    commit = commits.get(f"{name}^{{}}") or commits.get(name)
    if not commit:
        raise RequestInvalid(f"{url} has no {name}; give the full ref, as {next(iter(commits), 'refs/heads/main').removesuffix('^{}')}")
    return commit
