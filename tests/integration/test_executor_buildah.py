"""The executor on the real parts: Buildah, Git over smart HTTP, docker-registry."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ledger.build import ATTEMPT_LABEL, Reason
from tests.contract import ended, log_of
from tests.integration.registry_server import PASSWORD, USER, Certificate, RegistryServer, run_registry
from tests.requests import make_build, make_request
from worker.cluster.local import LocalCluster
from worker.complaint import find_complaint, judge
from worker.executor.context import fetch_context
from worker.executor.errors import ContextError
from worker.executor.flags import parse_flags
from worker.executor.places import Places
from worker.kaniko import launch

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("buildah", "docker-registry", "git"))) or os.geteuid() != 0,
    reason="needs root, buildah, docker-registry and git (deploy/demo/system installs them)",
)


@dataclass
class Done:
    """A run of the executor that has ended."""

    code: int
    log: str
    digest: str | None

    @property
    def reason(self) -> Reason:
        """What crabpot takes its failure for."""
        found = find_complaint(self.log.splitlines())
        assert found, self.log
        return judge(found)[0]


@dataclass
class Executor:
    """Runs the executor in an environment of its own."""

    state: Path
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        (self.folder / "message").unlink(missing_ok=True)
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "CRABPOT_EXECUTOR_STATE": str(self.state),
            "CRABPOT_TERMINATION_LOG": str(self.folder / "message"),
            **self.environment,
            **variables,
        }
        command = [sys.executable, "-m", "worker.executor", "--digest-file=/dev/termination-log", *arguments]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0)

    def __call__(self, *arguments: str, **variables: str) -> Done:
        with self.start(*arguments, **variables) as process:
            log, _ = process.communicate()
        message = self.folder / "message"
        assert not list(self.state.glob("run-*")), "a run leaves nothing behind"
        return Done(process.returncode, log, message.read_text() if message.exists() else None)


@pytest.fixture(scope="module")
def state() -> Iterator[Path]:
    """In memory where there is some: Buildah syncs every file."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture
def execute(state: Path, tmp_path: Path) -> Executor:
    return Executor(state, tmp_path)


@pytest.fixture(scope="module")
def base(registry: RegistryServer, state: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A base image with a shell, itself built by the executor from nothing."""
    context = tmp_path_factory.mktemp("base")
    shutil.copy("/bin/busybox", context / "busybox")
    (context / "Dockerfile").write_text(
        'FROM scratch\nCOPY busybox /bin/busybox\nRUN ["/bin/busybox", "--install", "-s", "/bin"]\nENV PATH=/bin\n'
    )
    name = f"{registry.host}/base/busybox:1"
    done = Executor(state, context)(f"--context=dir://{context}", f"--destination={name}", f"--insecure-registry={registry.host}")
    assert done.code == 0, done.log
    return name


@pytest.fixture
def context(tmp_path: Path, base: str) -> Callable[[str], Path]:
    """Write a Dockerfile, BASE in it for the base image; its folder."""

    def write(dockerfile: str, **files: str) -> Path:
        folder = tmp_path / "context"
        folder.mkdir(exist_ok=True)
        (folder / "Dockerfile").write_text(dockerfile.replace("BASE", base))
        for name, text in files.items():
            (folder / name).write_text(text)
        return folder

    return write


def image_of(registry: RegistryServer, name: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, bytes], str]:
    """Manifest, config, files of all layers, and digest of an image in the registry."""
    repository, _, reference = name.removeprefix(f"{registry.host}/").rpartition(":")
    with registry.http() as http:
        answer = http.get(
            f"{repository}/manifests/{reference}",
            headers={"Accept": "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"},
        ).raise_for_status()
        manifest = answer.json()
        config = http.get(f"{repository}/blobs/{manifest['config']['digest']}").raise_for_status().json()
        files: dict[str, bytes] = {}
        for layer in manifest["layers"]:
            raw = http.get(f"{repository}/blobs/{layer['digest']}").raise_for_status().content
            with tarfile.open(fileobj=io.BytesIO(gzip.decompress(raw))) as tar:
                files |= {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}  # type: ignore[union-attr]
    return manifest, config, files, answer.headers["Docker-Content-Digest"]


def test_an_image_from_scratch(execute: Executor, registry: RegistryServer, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY hello /hello\n")
    (tmp_path / "hello").write_text("hello\n")
    name = f"{registry.host}/scratch/app:1"
    done = execute(f"--context={tmp_path}", f"--destination={name}", f"--insecure-registry={registry.host}", "--label=a=b = c")
    assert done.code == 0, done.log
    manifest, config, files, digest = image_of(registry, name)
    assert done.digest == digest
    assert manifest["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert config["config"]["Labels"] == {"a": "b = c"}
    assert files == {"hello": b"hello\n"}


def test_a_build_with_all_that_a_dockerfile_can_use(execute: Executor, registry: RegistryServer, context: Any, tmp_path: Path) -> None:
    folder = context(
        """\
FROM BASE AS first
ARG GREETING
ARG ODD
ARG HIDDEN
RUN printf %s "$GREETING" > /greeting && printf %s "$ODD" > /odd && printf %s "$HIDDEN" > /hidden
RUN --mount=type=secret,id=tok wc -c < /run/secrets/tok > /size
RUN env > /environment
FROM scratch AS final
COPY --from=first /greeting /odd /hidden /size /environment /
FROM BASE AS other
RUN exit 9
"""
    )
    (tmp_path / "token").write_text("twelve bytes")
    name, further = f"{registry.host}/all/app:1", f"{registry.host}/all/other:1"
    odd = "a'b\"c$(D) $$ $E\nnext = line "
    done = execute(
        f"--context=dir://{folder}",
        "--target=final",
        f"--destination={name}",
        f"--destination={further}",
        f"--insecure-registry={registry.host}",
        "--build-arg=GREETING=hello big  world",
        f"--build-arg=ODD={odd}",
        "--build-arg=HIDDEN",
        "--secret=id=tok,type=file,src=/kaniko/mounted-secrets/0",
        HIDDEN="from the environment",
        GIT_PASSWORD="for nobody",
        CRABPOT_FOLDERS=json.dumps({"/kaniko/mounted-secrets/0": str(tmp_path / "token")}),
    )
    assert done.code == 0, done.log
    _, config, files, digest = image_of(registry, name)
    assert files["greeting"] == b"hello big  world"
    assert files["odd"] == odd.encode()
    assert files["hidden"] == b"from the environment"
    assert files["size"].strip() == b"12"
    assert "twelve bytes" not in json.dumps(config)
    assert b"for nobody" not in files["environment"]
    assert image_of(registry, further)[3] == digest == done.digest


def test_the_rewritten_paths_and_a_sub_path(execute: Executor, registry: RegistryServer, tmp_path: Path) -> None:
    sub = tmp_path / "real" / "sub"
    (sub / "docker").mkdir(parents=True)
    (sub / "docker" / "File").write_text("FROM scratch\nCOPY here /\n")
    (sub / "here").write_text("here")
    done = execute(
        "--context=dir:///kaniko/source",
        "--context-sub-path=sub",
        "--dockerfile=docker/File",
        f"--destination={registry.host}/paths/app:1",
        f"--insecure-registry={registry.host}",
        CRABPOT_FOLDERS=json.dumps({"/kaniko/source": str(tmp_path / "real")}),
    )
    assert done.code == 0, done.log
    assert image_of(registry, f"{registry.host}/paths/app:1")[2] == {"here": b"here"}


@pytest.mark.parametrize(
    ("dockerfile", "flags", "code", "reason"),
    [
        ("FROM BASE\nRUN echo before && exit 7\n", (), 7, Reason.BUILD_FAILED),
        ("FROM BASE\nRUN exit 137\n", (), 137, Reason.BUILD_FAILED),
        ("FROM BASE\nRUN kill -9 $$\n", (), 255, Reason.OUT_OF_MEMORY),
        ("FROM BASE\nRUNN x\n", (), 1, Reason.DOCKERFILE_INVALID),
        ("", (), 1, Reason.DOCKERFILE_INVALID),
        ("FROM BASE\nCOPY nothing /x\n", (), 1, Reason.BUILD_FAILED),
        ("FROM BASE\nRUN true\n", ("--target=nope",), 1, Reason.DOCKERFILE_INVALID),
        ("FROM BASE-nope\n", (), 1, Reason.BASE_IMAGE_MISSING),
        ("FROM 127.0.0.1:1/none:1\n", ("--insecure-registry=127.0.0.1:1",), 1, Reason.REGISTRY_UNAVAILABLE),
        ("FROM scratch\n", ("--dockerfile=nope",), 1, Reason.DOCKERFILE_INVALID),
        ("FROM scratch\n", ("--dockerfile=../outside",), 1, Reason.DOCKERFILE_INVALID),
        ("FROM scratch\n", ("--context-sub-path=nope",), 1, Reason.SOURCE_MISSING),
        ("FROM scratch\n", ("--context-sub-path=..",), 1, Reason.SOURCE_MISSING),
        ("FROM scratch\n", ("--snapshot-mode=redo",), 1, Reason.CONFIG_ERROR),
        ("FROM scratch\n", ("--context=gs://bucket/x.tar.gz",), 1, Reason.START_FAILED),
    ],
)
def test_a_build_that_fails_says_why_as_kaniko_does(
    execute: Executor, registry: RegistryServer, context: Any, dockerfile: str, flags: tuple[str, ...], code: int, reason: Reason
) -> None:
    folder = context(dockerfile)
    (folder.parent / "outside").write_text("FROM scratch\n")
    done = execute(f"--context={folder}", f"--destination={registry.host}/failed/app:1", f"--insecure-registry={registry.host}", *flags)
    assert done.code == code, done.log
    assert done.reason is reason, done.log
    assert done.digest is None
    assert "failed/app" not in registry.catalog()


def test_a_registry_that_does_not_answer_is_found_out_before_the_build(execute: Executor, context: Any) -> None:
    folder = context("FROM BASE\nRUN exit 3\n")
    done = execute(f"--context={folder}", "--destination=127.0.0.1:1/app:1", "--insecure-registry=127.0.0.1:1")
    assert (done.code, done.reason) == (1, Reason.REGISTRY_UNAVAILABLE), done.log
    assert "error checking push permissions" in done.log


def test_a_push_that_fails(execute: Executor, context: Any) -> None:
    folder = context("FROM scratch\nCOPY Dockerfile /\n")
    done = execute(
        f"--context={folder}", "--destination=127.0.0.1:1/app:1", "--insecure-registry=127.0.0.1:1", "--skip-push-permission-check=true"
    )
    assert (done.code, done.reason, done.digest) == (1, Reason.REGISTRY_UNAVAILABLE, None), done.log
    assert "error pushing image: failed to push to destination 127.0.0.1:1/app:1: " in done.log


def test_a_registry_with_a_password(execute: Executor, context: Any, tmp_path: Path) -> None:
    folder = context("FROM scratch\nCOPY Dockerfile /\n")
    config = tmp_path / "docker"
    config.mkdir()
    with run_registry(tmp_path / "private", htpasswd=True) as private:
        arguments = (f"--context={folder}", f"--destination={private.host}/app:1", f"--insecure-registry={private.host}")
        refused = execute(*arguments)
        assert (refused.code, refused.reason) == (1, Reason.REGISTRY_DENIED), refused.log
        assert "error checking push permissions" in refused.log
        refused = execute(*arguments, "--skip-push-permission-check")
        assert (refused.code, refused.reason) == (1, Reason.REGISTRY_DENIED), refused.log
        credential = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        (config / "config.json").write_text(json.dumps({"auths": {private.host: {"auth": credential}}}))
        done = execute(*arguments, DOCKER_CONFIG=str(config))
        assert done.code == 0, done.log
        assert PASSWORD not in done.log
        assert image_of(private, f"{private.host}/app:1")[3] == done.digest


def test_a_registry_with_an_authority_of_its_own(execute: Executor, context: Any, tmp_path: Path) -> None:
    folder = context("FROM scratch\nCOPY Dockerfile /\n")
    certificate = Certificate.make(tmp_path)
    with run_registry(tmp_path / "tls", tls=certificate) as server:
        arguments = (f"--context={folder}", f"--destination={server.host}/app:1")
        refused = execute(*arguments, "--skip-push-permission-check")
        assert (refused.code, refused.reason) == (1, Reason.CONFIG_ERROR), refused.log
        for trust in (f"--registry-certificate={server.host}={certificate.path}", f"--skip-tls-verify-registry={server.host}"):
            done = execute(*arguments, trust)
            assert done.code == 0, done.log


def test_a_tar_without_a_push(execute: Executor, context: Any, registry: RegistryServer, tmp_path: Path) -> None:
    folder = context("FROM BASE\nRUN echo hi > /hi\n")
    names = ["registry.example.com/a/b:1", "registry.example.com/c:2"]
    output = tmp_path / "output"
    output.mkdir()
    done = execute(
        f"--context={folder}",
        "--no-push",
        *(f"--destination={name}" for name in names),
        f"--insecure-registry={registry.host}",
        "--tar-path=/kaniko/output/image.tar",
        CRABPOT_FOLDERS=json.dumps({"/kaniko/output": str(output)}),
    )
    assert done.code == 0, done.log
    assert done.digest
    assert done.digest.startswith("sha256:")
    assert [path.name for path in output.iterdir()] == ["image.tar"]
    with tarfile.open(output / "image.tar") as tar:
        manifest = json.loads(tar.extractfile("manifest.json").read())  # type: ignore[union-attr]
        assert manifest[0]["RepoTags"] == names
        layers = [tarfile.open(fileobj=tar.extractfile(layer)).getnames() for layer in manifest[0]["Layers"]]  # noqa: SIM115
    assert "hi" in layers[-1]
    missing = execute(f"--context={folder}", "--no-push", f"--insecure-registry={registry.host}", "--tar-path=/no/such/folder/image.tar")
    assert (missing.code, missing.reason) == (1, Reason.CONFIG_ERROR), missing.log


def test_a_second_build_is_served_from_the_cache(execute: Executor, context: Any, registry: RegistryServer) -> None:
    folder = context("FROM BASE\nRUN date +%s%N > /stamp && head -c 16 /dev/urandom >> /stamp\nCOPY file /\n", file="1")
    arguments = (
        f"--context={folder}",
        f"--destination={registry.host}/cached/app:1",
        f"--insecure-registry={registry.host}",
        "--cache=true",
        f"--cache-repo={registry.host}/cached/layers",
        "--cache-ttl=1209600000ms",
    )
    stamps = []
    for text in ("1", "2"):
        (folder / "file").write_text(text)
        done = execute(*arguments)
        assert done.code == 0, done.log
        files = image_of(registry, f"{registry.host}/cached/app:1")[2]
        assert files["file"] == text.encode()
        stamps.append(files["stamp"])
    assert stamps[0] == stamps[1]


def test_a_registry_map_is_where_base_images_come_from(execute: Executor, context: Any, registry: RegistryServer) -> None:
    folder = context("FROM registry.example.com/busybox:1\nRUN true\n")
    done = execute(
        f"--context={folder}",
        f"--destination={registry.host}/mapped/app:1",
        f"--insecure-registry={registry.host}",
        f"--registry-map=registry.example.com={registry.host}/base",
    )
    assert done.code == 0, done.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_stopped_leaves_nothing(execute: Executor, context: Any, registry: RegistryServer, state: Path, number: int) -> None:
    """At once when it is told to stop; when it is killed, the next run clears up."""
    folder = context("FROM BASE\nRUN echo ready-now && exec sleep 600\n")
    with execute.start(
        f"--context={folder}", f"--destination={registry.host}/stopped/app:1", f"--insecure-registry={registry.host}"
    ) as process:
        assert process.stdout
        assert any(line == "ready-now\n" for line in process.stdout)
        os.killpg(process.pid, number)
        process.stdout.read()
    assert process.returncode == (143 if number == signal.SIGTERM else -number)
    if number == signal.SIGKILL:
        assert list(state.glob("run-*"))
        (folder / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
        assert execute(f"--context={folder}", "--no-push").code == 0
    assert not list(state.glob("run-*"))


# Git


@dataclass
class Fetched:
    """What fetching a source gave."""

    files: Mapping[str, bytes]
    complaint: str = ""

    @property
    def reason(self) -> Reason:
        return Done(1, self.complaint, None).reason


def files_of(folder: Path) -> type[SimpleHTTPRequestHandler]:
    class Files(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *_: object) -> None:
            pass

    return Files


@dataclass
class GitServer:
    """Repositories over Git's smart HTTP protocol (git http-backend), and whose credentials came."""

    folder: Path
    address: str = ""
    login: tuple[str, str] | None = None
    seen: list[str | None] = field(default_factory=list)

    def run(self, *arguments: str, where: str = "work") -> str:
        names = ("-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "init.defaultBranch=main", "-c", "protocol.file.allow=always")
        command = ["git", *names, "-C", str(self.folder / where), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def commit(self, *options: str, **files: str) -> str:
        """Commit the files to main and push; the commit."""
        for name, text in files.items():
            (self.folder / "work" / name).write_text(text)
        self.run("add", "-A")
        self.run("commit", "--quiet", "--allow-empty", "-m", "c", *options)
        self.run("push", "--quiet", "--force", str(self.folder / "app.git"), "HEAD:main")
        return self.run("rev-parse", "HEAD")


class _Backend(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        git = self.server.git
        authorization = self.headers.get("Authorization")
        git.seen.append(authorization)
        if git.login and authorization != "Basic " + base64.b64encode(":".join(git.login).encode()).decode():
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="git"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        path, _, query = self.path.partition("?")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        environment = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(git.folder),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
        }
        answer = subprocess.run(["git", "http-backend"], env=environment, input=body, capture_output=True, check=True).stdout
        head, _, content = answer.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        self.send_response(int(headers.pop("Status", "200").split()[0]))
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    git: GitServer


@contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[str]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def git(tmp_path: Path) -> Iterator[GitServer]:
    folder = tmp_path / "git"
    (folder / "work").mkdir(parents=True)
    found = GitServer(folder)
    found.run("init", "--quiet", "--bare", "app.git", where=".")
    found.run("init", "--quiet")
    server = _Server(("127.0.0.1", 0), _Backend)
    server.git = found
    with serving(server) as found.address:
        yield found


@pytest.fixture
def fetch(git: GitServer, tmp_path: Path) -> Callable[..., Fetched]:
    """Fetch from `app.git` as the executor does before it builds; all files, or the complaint."""

    def run(fragment: str, *flags: str, repository: str = "app.git", **variables: str) -> Fetched:
        options = parse_flags((f"--context=git://{git.address}/{repository}{fragment}", "--no-push", *flags))
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GIT_PULL_METHOD": "http", **variables}
        with tempfile.TemporaryDirectory() as folder:
            try:
                root = fetch_context(options, Places({}), Path(folder), environment)
            except ContextError as error:
                return Fetched({}, f"Error: {error}\nUsage:\n")
            return Fetched({str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()})

    return run


def test_a_build_from_git(execute: Executor, git: GitServer, registry: RegistryServer) -> None:
    commit = git.commit(Dockerfile="FROM scratch\nCOPY file /\n", file="first")
    git.commit(file="second")
    name = f"{registry.host}/git/app:1"
    source = f"--context=git://{git.address}/app.git#refs/heads/main#{commit}"
    done = execute(source, f"--destination={name}", f"--insecure-registry={registry.host}", GIT_PULL_METHOD="http")
    assert done.code == 0, done.log
    assert image_of(registry, name)[2] == {"file": b"first"}
    done = execute(source.replace(commit, "1" * 40), f"--destination={name}", GIT_PULL_METHOD="http")
    assert (done.code, done.reason) == (1, Reason.SOURCE_MISSING), done.log


def test_exactly_the_commit_is_fetched_though_the_ref_has_moved_on(git: GitServer, fetch: Any) -> None:
    first = git.commit(file="first")
    second = git.commit(file="second")
    for fragment, text in (
        (f"#refs/heads/main#{first}", b"first"),
        (f"##{first}", b"first"),
        (f"#{first}", b"first"),
        (f"#refs/heads/main#{second}", b"second"),
        ("#refs/heads/main", b"second"),
        ("#main", b"second"),
        ("", b"second"),
    ):
        assert fetch(fragment).files.get("file") == text, fragment


def test_the_commit_is_fetched_though_the_ref_was_overwritten(git: GitServer, fetch: Any) -> None:
    git.run("config", "uploadpack.allowAnySHA1InWant", "true", where="app.git")
    first = git.commit(file="first")
    git.commit("--amend", file="instead")
    assert fetch(f"#refs/heads/main#{first}").files["file"] == b"first"


def test_the_commit_is_found_on_another_branch(git: GitServer, fetch: Any) -> None:
    first = git.commit(file="first")
    git.run("branch", "kept", "main", where="app.git")
    git.commit("--amend", file="instead")
    assert fetch(f"#refs/heads/main#{first}").files["file"] == b"first"


def test_a_plain_file_server_is_enough(git: GitServer, fetch: Any, tmp_path: Path) -> None:
    first = git.commit(file="first")
    git.commit(file="second")
    git.run("update-server-info", where="app.git")
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), files_of(git.folder))) as git.address:
        assert fetch(f"#refs/heads/main#{first}").files["file"] == b"first"


def test_a_tag_and_the_history_for_git_describe(git: GitServer, fetch: Any) -> None:
    git.commit(file="1")
    git.run("push", "--quiet", str(git.folder / "app.git"), "HEAD:refs/tags/v1.0")
    commit = git.commit(file="2")
    assert ".git/refs/tags/v1.0" in fetch(f"#refs/heads/main#{commit}").files
    assert fetch("#refs/tags/v1.0").files["file"] == b"1"


def test_a_depth_and_a_branch_are_honoured(git: GitServer, fetch: Any) -> None:
    git.commit(file="1")
    commit = git.commit(file="2")
    assert fetch("#refs/heads/main", "--git=depth=1").files[".git/shallow"] == commit.encode() + b"\n"
    assert fetch("#refs/heads/nope", "--git=branch=main").files["file"] == b"2"


def test_credentials_reach_the_server_and_nothing_else(git: GitServer, fetch: Any, capfd: pytest.CaptureFixture[str]) -> None:
    commit = git.commit(file="private")
    git.login = ("someone", "p@ss 'word")
    fragment = f"#refs/heads/main#{commit}"
    assert fetch(fragment).reason is Reason.SOURCE_DENIED
    assert fetch(fragment, GIT_USERNAME="someone", GIT_PASSWORD="wrong").reason is Reason.SOURCE_DENIED
    fetched = fetch(fragment, GIT_USERNAME="someone", GIT_PASSWORD="p@ss 'word")
    assert fetched.files["file"] == b"private"
    assert not any(b"p@ss" in content or b"someone" in content for content in fetched.files.values())
    assert "p@ss" not in "".join(capfd.readouterr())
    git.login = ("a-token", "")
    assert fetch(fragment, GIT_TOKEN="a-token").files["file"] == b"private"


def test_credentials_are_for_the_sources_own_host(git: GitServer, fetch: Any) -> None:
    """A submodule may be anybody's."""
    other = GitServer(git.folder)
    server = _Server(("127.0.0.1", 0), _Backend)
    server.git = other
    with serving(server) as other.address:
        git.run("init", "--quiet", "--bare", "part.git", where=".")
        git.commit(file="1")
        git.run("push", "--quiet", str(git.folder / "part.git"), "HEAD:main")
        git.run("submodule", "--quiet", "add", str(git.folder / "part.git"), "part")
        git.run("config", "--file", ".gitmodules", "submodule.part.url", f"http://{other.address}/part.git")
        commit = git.commit()
        git.login, other.login = ("someone", "word"), ("nobody", "else")
        fetched = fetch(f"##{commit}", "--git=recurse-submodules=true", GIT_USERNAME="someone", GIT_PASSWORD="word")
    assert fetched.reason is Reason.SOURCE_DENIED
    assert other.seen
    assert set(other.seen) == {None}


@pytest.mark.parametrize(
    ("fragment", "repository", "reason"),
    [
        ("#refs/heads/nope", "app.git", Reason.SOURCE_MISSING),
        ("#refs/heads/main#" + "1" * 40, "app.git", Reason.SOURCE_MISSING),
        ("##" + "1" * 40, "app.git", Reason.SOURCE_MISSING),
        ("#refs/heads/main", "nope.git", Reason.SOURCE_MISSING),
    ],
)
def test_a_source_that_is_not_there(git: GitServer, fetch: Any, fragment: str, repository: str, reason: Reason) -> None:
    git.commit(file="1")
    assert fetch(fragment, repository=repository).reason is reason


def test_a_git_server_that_does_not_answer(git: GitServer, fetch: Any) -> None:
    git.address = "127.0.0.1:1"
    assert fetch("#refs/heads/main").reason is Reason.START_FAILED


def test_submodules_are_those_of_the_commit_and_of_http_only(git: GitServer, fetch: Any) -> None:
    git.run("init", "--quiet", "--bare", "part.git", where=".")
    git.commit(file="1")
    git.run("push", "--quiet", str(git.folder / "part.git"), "HEAD:main")
    git.run("submodule", "--quiet", "add", str(git.folder / "part.git"), "part")
    local = git.commit()
    git.run("config", "--file", ".gitmodules", "submodule.part.url", "../part.git")
    commit = git.commit()
    assert fetch(f"##{commit}", "--git=recurse-submodules=true").files["part/file"] == b"1"
    assert "part/file" not in fetch(f"##{commit}").files
    assert "not allowed" in fetch(f"##{local}", "--git=recurse-submodules=true").complaint


# Tarballs


@pytest.fixture
def tarball(tmp_path: Path) -> Path:
    path = tmp_path / "files" / "source.tar.gz"
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as tar:
        for name, text in (("Dockerfile", "FROM scratch\nCOPY file /\n"), ("file", "from a tar")):
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    return path


def test_a_tarball_of_this_machine(execute: Executor, tarball: Path, tmp_path: Path) -> None:
    done = execute(
        "--context=tar:///kaniko/source/source.tar.gz", "--no-push", CRABPOT_FOLDERS=json.dumps({"/kaniko/source": str(tarball.parent)})
    )
    assert done.code == 0, done.log
    tarball.write_bytes(b"no tar at all")
    done = execute(f"--context=tar://{tarball}", "--no-push")
    assert (done.code, done.reason) == (1, Reason.SOURCE_MISSING), done.log


def test_a_tarball_over_https(execute: Executor, tarball: Path, tmp_path: Path) -> None:
    certificate = Certificate.make(tmp_path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), files_of(tarball.parent))
    server.socket = certificate.context().wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    with serving(server) as address:
        trusted = {"SSL_CERT_FILE": str(certificate.path)}
        done = execute(f"--context=https://{address}/source.tar.gz", "--no-push", **trusted)
        assert done.code == 0, done.log
        done = execute(f"--context=https://{address}/nope.tar.gz", "--no-push", **trusted)
        assert (done.code, done.reason) == (1, Reason.SOURCE_MISSING), done.log
        done = execute("--context=https://127.0.0.1:1/source.tar.gz", "--no-push")
        assert (done.code, done.reason) == (1, Reason.START_FAILED), done.log


# All of it


async def test_a_request_becomes_an_image_on_this_machine(registry: RegistryServer, context: Any, tmp_path: Path, state: Path) -> None:
    """Request -> launch -> local cluster -> executor -> registry: the digest in the pod is the registry's."""
    folder = context('FROM BASE\nARG GREETING\nRUN printf %s "$GREETING" > /greeting\n')
    request = make_request(
        source={"kind": "host_path", "path": str(folder)},
        destinations=[f"{registry.host}/whole/app:1.2.3"],
        tar={"host_path": str(tmp_path / "made" / "output")},
        build_args={"GREETING": "hello  'big' $(WORLD)\n"},
        registries={"insecure": [registry.host]},
    )
    build = make_build(request=request, attempt=1)
    cluster = LocalCluster(state / "launches", ["python", "-m", "worker.executor"])
    pod = await cluster.launch(launch(build, "linux/amd64", namespace="any", executor_image="any"))
    end = await ended(cluster, pod.name)
    assert end.exit_code == 0, await log_of(cluster, pod.name)
    _, config, files, digest = image_of(registry, f"{registry.host}/whole/app:1.2.3")
    assert end.message == digest
    assert files["greeting"] == b"hello  'big' $(WORLD)\n"
    assert config["config"]["Labels"][ATTEMPT_LABEL] == f"{build.id}.1"
    assert (tmp_path / "made" / "output" / "image.tar").is_file()
    await cluster.delete(pod.name, pod.uid, timedelta(seconds=1))
    await cluster.release(pod.name, pod.uid)
    assert (await cluster.pods()).pods == ()
    await cluster.close()


async def test_a_build_that_is_deleted_midway_leaves_nothing_running(registry: RegistryServer, context: Any, state: Path) -> None:
    folder = context("FROM BASE\nRUN echo ready-now && sleep 600\n")
    request = make_request(
        source={"kind": "host_path", "path": str(folder)},
        destinations=[f"{registry.host}/midway/app:1.2.3"],
        registries={"insecure": [registry.host]},
    )
    cluster = LocalCluster(state / "launches", ["python", "-m", "worker.executor"])
    pod = await cluster.launch(launch(make_build(request=request, attempt=1), "linux/amd64", namespace="any", executor_image="any"))
    async for line in cluster.logs(pod.name):
        if line.text == "ready-now":
            await cluster.delete(pod.name, pod.uid, timedelta(seconds=10))
    end = await ended(cluster, pod.name)
    assert (end.exit_code, end.message and end.message.startswith("sha256:")) == (143, False)
    assert not list((state / "launches" / "work").glob("run-*"))
    await cluster.release(pod.name, pod.uid)
    await cluster.close()
