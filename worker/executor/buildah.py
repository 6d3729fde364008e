"""Buildah, called: what its settings and arguments are for a build, and how it is run. Everything it keeps is in one run's folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from worker.executor.errors import BuildError, PushError, SetupError
from worker.executor.failures import build_failure, complaint, push_failure
from worker.executor.flags import Options
from worker.executor.places import Places

_TAIL = 60
"""Lines of Buildah's output that are looked at for why it failed."""
_IMMUTABLE = ("The repository has enabled tag immutability", "cannot be overwritten because the tag is immutable")
_STOP_SECONDS = 10.0


class Buildah:
    """Buildah with storage, settings and a home below one folder."""

    def __init__(self, folder: Path, options: Options, places: Places, environment: Mapping[str, str]) -> None:
        if not shutil.which("buildah"):
            raise SetupError("buildah is not installed (Debian: apt-get install buildah)")
        self._folder, self._options, self._places = folder, options, places
        self.authfile = _write(folder / "auth.json", _docker_config(environment))
        storage = f'[storage]\ndriver = "vfs"\ngraphroot = "{folder}/images"\nrunroot = "{folder}/run"\n'
        self._registries = _write(folder / "registries.conf", registries_conf(options))
        home, scratch = folder / "home", folder / "tmp"
        for made in (home, scratch, folder / "registries.d"):
            made.mkdir()
        for host, path in options.certificates.items():
            target = home / ".config/containers/certs.d" / host / "ca.crt"
            target.parent.mkdir(parents=True)
            target.symlink_to(places.find(path))
        self._environment = {
            **{name: value for name, value in environment.items() if not name.startswith(("GIT_", "BUILDAH_", "CRABPOT_GIT_"))},
            "HOME": str(home),
            "TMPDIR": str(scratch),
            "CONTAINERS_STORAGE_CONF": str(_write(folder / "storage.conf", storage)),
        }

    def build(self, context: Path, dockerfile: Path) -> str:
        """Build, and return the image's id. BuildError."""
        iid = self._folder / "iid"
        arguments = build_arguments(self._options, self._places, self._environment)
        exit_code, lines = self._run(
            ["build", *arguments, f"--authfile={self.authfile}", f"--iidfile={iid}", f"--file={dockerfile}", str(context)]
        )
        if exit_code:
            raise build_failure(lines, exit_code, retries=self._options.pull_retries)
        if not iid.is_file():
            raise BuildError("buildah made no image")
        return iid.read_text().strip().removeprefix("sha256:")

    def push(self, image: str, destination: str) -> str:
        """Push to a registry, and return the digest. PushError."""
        options = self._options
        arguments = [f"--retry={options.push_retries}", "--retry-delay=1s", *(["--tls-verify=false"] if options.insecure_push else [])]
        exit_code, lines = self._copy(image, f"docker://{destination}", arguments)
        if exit_code and not (options.ignore_immutable and any(words in line for line in lines for words in _IMMUTABLE)):
            raise push_failure(destination, lines)
        return "" if exit_code else self._digest()

    def digest(self, image: str) -> str:
        """The digest that a push of the image would have."""
        exit_code, lines = self._copy(image, f"oci:{self._folder}/layout", [])
        if exit_code:
            raise PushError(f"error fetching digest: {complaint(lines)}")
        return self._digest()

    def save(self, image: str, target: Path, destination: str) -> None:
        """Write a tar that `docker load` takes. PushError."""
        exit_code, lines = self._run(["push", image, f"docker-archive:{target}:{destination}"])
        if exit_code:
            raise PushError(f"writing tarball to file failed: {complaint(lines)}")

    def _copy(self, image: str, target: str, arguments: Sequence[str]) -> tuple[int, list[str]]:
        options = self._options
        level = [] if options.compression_level is None else [f"--compression-level={options.compression_level}"]
        compression = [f"--compression-format={options.compression}"] if options.compression else []
        media = f"--format={'v2s2' if options.image_format == 'docker' else 'oci'}"
        return self._run(
            [
                "push",
                *arguments,
                *compression,
                *level,
                media,
                f"--authfile={self.authfile}",
                f"--digestfile={self._digest_file}",
                image,
                target,
            ]
        )

    @property
    def _digest_file(self) -> Path:
        return self._folder / "digest"

    def _digest(self) -> str:
        return self._digest_file.read_text().strip()

    def _run(self, arguments: Sequence[str]) -> tuple[int, list[str]]:
        """Run it to its end; what it prints goes through. Its exit code, and its last lines."""
        command = [
            "buildah",
            f"--registries-conf={self._registries}",
            f"--registries-conf-dir={self._folder / 'registries.d'}",
            f"--root={self._folder / 'images'}",
            f"--runroot={self._folder / 'run'}",
            "--storage-driver=vfs",
            *arguments,
        ]
        lines: deque[str] = deque(maxlen=_TAIL)
        with subprocess.Popen(command, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            assert process.stdout
            try:
                for line in process.stdout:
                    sys.stdout.buffer.write(line)
                    sys.stdout.buffer.flush()
                    lines.append(line.decode(errors="replace").rstrip("\n"))
            except BaseException:  # told to stop: not without it
                process.terminate()
                try:
                    process.wait(_STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                raise
        return process.returncode, list(lines)


def build_arguments(options: Options, places: Places, environment: Mapping[str, str]) -> list[str]:
    """The arguments of `buildah build` that follow from the options. Pure."""

    def each() -> Iterator[str]:
        yield from ("--isolation=chroot", "--identity-label=false", "--http-proxy=false")
        yield f"--layers={'true' if options.layers else 'false'}"
        yield f"--format={options.image_format}"
        yield from (f"--retry={options.pull_retries}", "--retry-delay=1s")
        if options.insecure_pull:
            yield "--tls-verify=false"
        if options.platform:
            yield f"--platform={options.platform}"
        if options.target:
            yield f"--target={options.target}"
        for argument in options.build_args:
            # A name alone takes its value from the environment, in Buildah as in Kaniko; one that is not there is empty in Kaniko.
            yield f"--build-arg={argument}" if "=" in argument or argument in environment else f"--build-arg={argument}="
        yield from (f"--label={label}" for label in options.labels)
        yield from (f"--annotation={annotation}" for annotation in options.annotations)
        for secret in options.secrets:
            where = f"src={places.find(secret.file)}" if secret.file else f"env={secret.variable}"
            yield f"--secret=id={secret.id},{where}"
        if options.reproducible:
            yield "--timestamp=0"
        if options.cache:
            yield from (f"--cache-from={options.cache}", f"--cache-to={options.cache}")
            if options.cache_ttl:
                yield f"--cache-ttl={options.cache_ttl}"
        else:
            yield "--no-cache"

    return list(each())


def registries_conf(options: Options) -> str:
    """How registries are reached, as containers-registries.conf(5) says it. Pure.

    `insecure` there means what two of Kaniko's flags mean: TLS without a check of the certificate is tried first, then plain HTTP.
    """

    def table(location: str) -> str:
        host = location.partition("/")[0]
        return f"location = {json.dumps(location)}\ninsecure = {'true' if host in options.insecure else 'false'}\n"

    hosts = [*options.mirrors, *(host for host in sorted(options.insecure) if host not in options.mirrors)]
    tables = [
        f"\n[[registry]]\n{table(host)}" + "".join(f"\n[[registry.mirror]]\n{table(mirror)}" for mirror in options.mirrors.get(host, ()))
        for host in hosts
    ]
    return 'unqualified-search-registries = ["docker.io"]\nshort-name-mode = "disabled"\n' + "".join(tables)


def _docker_config(environment: Mapping[str, str]) -> str:
    """The docker config.json that Kaniko would use, or an empty one: Buildah is to look nowhere else."""
    folder = environment.get("DOCKER_CONFIG") or f"{environment.get('HOME', '/root')}/.docker"
    path = Path(folder) / "config.json"
    return path.read_text() if path.is_file() else "{}"


def _write(path: Path, text: str) -> Path:
    path.touch(0o600)
    path.write_text(text)
    return path
