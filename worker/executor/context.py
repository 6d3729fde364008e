"""Fetching the source of a build: a commit of a Git repository, a tarball, or a folder.

Git checks out exactly the commit that is named, also where its ref has moved on or was overwritten. Credentials go to Git by its
environment, for the source's own host only; they are in no argument and no file.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from ledger.references import parse_commit
from worker.executor.errors import ContextError, DockerfileError
from worker.executor.flags import Git, Options
from worker.executor.places import Places

_DOWNLOAD_TIMEOUT = 60.0
"""Seconds without a byte."""
_HELPER = '!f() { test "$1" = get && printf "username=%s\\npassword=%s\\n" "$CRABPOT_GIT_USERNAME" "$CRABPOT_GIT_PASSWORD"; }; f'


def fetch_context(options: Options, places: Places, folder: Path, environment: Mapping[str, str]) -> Path:
    """The folder that is the build's context; what must be fetched goes below `folder`. ContextError in Kaniko's words."""
    scheme, colons, rest = options.context.partition("://")
    match scheme if colons else "dir":
        case "dir":
            root = places.find(rest if colons else options.context)
        case "git":
            root = _clone(rest, options.git, folder, environment)
        case "tar":
            root = _unpack(places.find(rest), folder)
        case "https":
            root = _unpack(_download(options.context, folder / "context.tar.gz"), folder)
        case _:
            raise ContextError(
                f"this executor takes git://, https://, dir:// and tar:// contexts, not {scheme}://; set CRABPOT_CLUSTER=kubernetes"
            )
    found = root / options.sub_path
    if not found.is_dir() or not found.resolve().is_relative_to(root.resolve()):
        raise ContextError(f"stat {found}: no such file or directory")
    return found


def find_dockerfile(options: Options, places: Places, context: Path) -> Path:
    """The Dockerfile's path: as given where it is absolute, else below the context and nowhere else."""
    absolute = options.dockerfile.startswith("/")
    path = places.find(options.dockerfile) if absolute else context / options.dockerfile
    if not path.is_file() or not (absolute or path.resolve().is_relative_to(context.resolve())):
        raise DockerfileError("please provide a valid path to a Dockerfile within the build context with --dockerfile")
    return path


def _clone(source: str, options: Git, folder: Path, environment: Mapping[str, str]) -> Path:
    """Check out `host/path#ref#commit`, each of the two optional."""
    address, ref, commit, *_ = [*source.split("#"), "", ""]
    url = f"{'http' if environment.get('GIT_PULL_METHOD') == 'http' else 'https'}://{address}"
    if options.branch:
        ref = options.branch
    if _is_commit(ref) and not commit:
        ref, commit = "", ref
    repository = _Repository(folder / "source", url, options, environment)
    repository.run("init", "--quiet", str(repository.path))
    repository.run("remote", "add", "origin", url)
    if ref:
        full = ref if ref.startswith("refs/") else f"refs/heads/{ref}"
        repository.fetch(f"+{full}:refs/remotes/origin/{full.removeprefix('refs/heads/')}")
    elif not commit:
        repository.fetch("HEAD")
    if commit and not repository.has(commit):
        # The ref was overwritten, or there is none: servers may still give the object by its name, else it is looked for everywhere.
        try:
            repository.fetch(commit)
        except ContextError:
            repository.fetch("+refs/heads/*:refs/remotes/origin/*")
        if not repository.has(commit):
            raise ContextError(f"object not found: {commit}")
    repository.run("checkout", "--quiet", "--detach", commit or "FETCH_HEAD")
    if options.submodules:
        repository.run("submodule", "--quiet", "update", "--init", "--recursive")
    return repository.path


def _is_commit(text: str) -> bool:
    try:
        return bool(parse_commit(text))
    except ValueError:
        return False


class _Repository:
    """A clone, and how Git is called for it."""

    def __init__(self, path: Path, url: str, options: Git, environment: Mapping[str, str]) -> None:
        self.path, self._options = path, options
        self._environment = _git_environment(url, options, environment)

    def fetch(self, refspec: str) -> None:
        depth = [f"--depth={self._options.depth}"] if self._options.depth else []
        print(f"Fetching {refspec}", flush=True)
        self.run("fetch", "--quiet", *depth, "origin", refspec)

    def has(self, commit: str) -> bool:
        command = ["git", "-C", str(self.path), "cat-file", "-e", f"{commit}^{{commit}}"]
        return subprocess.run(command, env=self._environment, check=False, capture_output=True).returncode == 0

    def run(self, *arguments: str) -> None:
        """ContextError in Git's words, which are Kaniko's where it matters."""
        place = [] if arguments[0] == "init" else ["-C", str(self.path)]
        done = subprocess.run(
            ["git", *place, *arguments], env=self._environment, check=False, capture_output=True, text=True, errors="replace"
        )
        if done.returncode:
            raise ContextError(_in_kanikos_words(done.stderr.strip()))


def _git_environment(url: str, options: Git, environment: Mapping[str, str]) -> dict[str, str]:
    scheme, _, rest = url.partition("://")
    home = f"{scheme}://{rest.partition('/')[0]}"
    token, username, password = (environment.get(f"GIT_{name}", "") for name in ("TOKEN", "USERNAME", "PASSWORD"))
    settings = [("credential.helper", ""), ("core.hooksPath", os.devnull), ("advice.detachedHead", "false")]
    if token or username or password:
        settings.append((f"credential.{home}.helper", _HELPER))
    if options.insecure:
        settings.append(("http.sslVerify", "false"))
    numbered = {f"GIT_CONFIG_KEY_{number}": name for number, (name, _) in enumerate(settings)}
    numbered |= {f"GIT_CONFIG_VALUE_{number}": value for number, (_, value) in enumerate(settings)}
    return {
        **{name: value for name, value in environment.items() if not name.startswith("GIT_")},
        **numbered,
        "GIT_CONFIG_COUNT": str(len(settings)),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ALLOW_PROTOCOL": "http:https",  # submodules too
        "CRABPOT_GIT_USERNAME": token or username,
        "CRABPOT_GIT_PASSWORD": "" if token else password,
        "LC_ALL": "C",
    }


def _in_kanikos_words(text: str) -> str:
    """Git's complaint after the word by which crabpot knows it from Kaniko."""
    for words, kanikos in (
        ("Authentication failed", "authentication required"),
        ("could not read Username", "authentication required"),
        ("error: 403", "authorization failed"),
        ("not found", "repository not found"),
        ("couldn't find remote ref", "reference not found"),
    ):
        if words in text and kanikos not in text:
            return f"{kanikos}: {text}"
    return text


def _download(url: str, target: Path) -> Path:
    try:
        with urllib.request.urlopen(url, timeout=_DOWNLOAD_TIMEOUT) as answer, target.open("wb") as file:  # noqa: S310 (https, seen to)
            shutil.copyfileobj(answer, file)
    except urllib.error.HTTPError as error:
        with error:
            raise ContextError(f"HTTPSTar bad status from server: {error.code} {error.reason}") from None
    except OSError as error:
        raise ContextError(f"Get {url.partition('?')[0]!r}: {getattr(error, 'reason', error)}") from None
    return target


def _unpack(archive: Path, folder: Path) -> Path:
    """GNU tar refuses what would land outside; it knows by itself how an archive is compressed."""
    root = folder / "source"
    root.mkdir()
    command = ["tar", "--extract", "--file", str(archive), "--directory", str(root), "--no-same-owner", "--force-local"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise ContextError(
            f"gzip: invalid header or archive/tar: {done.stderr.strip()}" if archive.is_file() else f"stat {archive}: no such file"
        )
    return root
