"""Every place that a build's files can come from, each seen in the image that came of it."""

from __future__ import annotations

import secrets
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.conftest import Submit
from tests.e2e.harness import Crabpot
from tests.e2e.harness_cluster import Cluster
from tests.e2e.harness_forge import OWNER, Forge, Repository

COPY_ALL = "FROM scratch\nCOPY . /files/\n"
SHARED_TAR = "image.tar"


@dataclass
class Repositories:
    public: Repository
    private: Repository
    wanted: str
    """The commit of the public repository that is asked for; its branch has moved on."""
    private_commit: str


@pytest.fixture(scope="module")
def repositories(forge: Forge, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repositories]:
    folder, mark = tmp_path_factory.mktemp("repositories"), secrets.token_hex(3)
    library = forge.create(f"library-{mark}", folder / "library")
    library.commit({"library.txt": "from the submodule"})
    library.push()
    public = forge.create(f"public-{mark}", folder / "public")
    public.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", library.url, "vendor")
    wanted = public.commit(
        {"Dockerfile": COPY_ALL, "name.txt": "wanted", "parts/inner/Dockerfile": COPY_ALL, "parts/inner/part.txt": "a part"}
    )
    public.push()
    public.commit({"name.txt": "moved on"})
    public.push()
    private = forge.create(f"private-{mark}", folder / "private", private=True)
    private_commit = private.commit({"Dockerfile": COPY_ALL, "secret-plan.txt": "private"})
    private.push()
    yield Repositories(public, private, wanted, private_commit)
    for repository in (library, public, private):
        repository.delete()


@pytest.fixture(scope="module")
def node_folder(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the node; the node of the project's cluster shares this machine's disk."""
    folder = tmp_path_factory.mktemp("node")
    folder.chmod(0o755)
    (folder / "context").mkdir()
    (folder / "context/Dockerfile").write_text(f"FROM {cluster.registry}/base/busybox:1\nCOPY page.txt /page.txt\nCMD cat /page.txt\n")
    (folder / "context/page.txt").write_text("built on the node")
    return folder


@pytest.fixture(scope="module")
def claim(crabpot: Crabpot, node_folder: Path) -> Iterator[str]:
    """A claim that is bound to a folder of the node, with a context in it."""
    folder = node_folder / "claim"
    (folder / "team/app").mkdir(parents=True)
    (folder / "team/app/Dockerfile").write_text(COPY_ALL)
    (folder / "team/app/claimed.txt").write_text("from a claim")
    name = f"e2e-{crabpot.name}"
    capacity = {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany"], "storageClassName": name}
    volume = {"kind": "PersistentVolume", "metadata": {"name": name}, "spec": {**capacity, "hostPath": {"path": str(folder)}}}
    wanted = {"accessModes": ["ReadWriteMany"], "storageClassName": name, "resources": {"requests": {"storage": "1Gi"}}}
    crabpot.cluster.apply(crabpot.namespace, volume, {"kind": "PersistentVolumeClaim", "metadata": {"name": "sources"}, "spec": wanted})
    yield "sources"
    crabpot.cluster.kubectl("delete", "persistentvolume", name, "--wait=false")


@pytest.fixture(scope="module")
def builds(crabpot: Crabpot, forge: Forge, repositories: Repositories, node_folder: Path, claim: str, submit_all: Submit) -> dict[str, str]:
    git = {"kind": "git", "url": repositories.public.url, "ref": "refs/heads/main", "commit": repositories.wanted}
    private = {**git, "url": repositories.private.url, "commit": repositories.private_commit}
    crabpot.secret("forge-password", {"username": OWNER, "password": forge.token})
    crabpot.secret("forge-token", {"token": forge.token})
    files = {"Dockerfile": COPY_ALL, "configured.txt": "from a ConfigMap"}
    on_node = {"kind": "host_path", "path": str(node_folder / "context")}
    there = {"placement": {"node_name": crabpot.cluster.node()}, "push": False}
    return submit_all(
        crabpot,
        {
            "at-a-commit": {"source": git},
            "sub-path": {"source": {**git, "sub_path": "parts/inner"}},
            "without-ref": {"source": {key: value for key, value in git.items() if key != "ref"}},
            "submodules": {"source": {**git, "submodules": True}},
            "private-password": {"source": private, "secrets": {"git": {"secret": "forge-password"}}},
            "private-token": {"source": private, "secrets": {"git": {"secret": "forge-token", "kind": "token"}}},
            "config-map": {"source": crabpot.config_map("files", files)},
            "claim": {"source": {"kind": "claim", "claim": claim, "sub_path": "team/app"}},
            "host-path": {"source": on_node, **there, "tar": {"host_path": str(node_folder / "out"), "path": SHARED_TAR}},
            "tar-on-claim": {"source": on_node, **there, "tar": {"claim": claim, "path": "claimed.tar"}},
        },
    )


def run_once(crabpot: Crabpot, name: str, image: str) -> str:
    """What a pod of an image that is on the node says before it ends."""
    kubectl, here = crabpot.cluster.kubectl, ("--namespace", crabpot.namespace)
    kubectl(*here, "run", name, f"--image={image}", "--image-pull-policy=Never", "--restart=Never")
    kubectl(*here, "wait", "pod", name, "--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s")
    said = kubectl(*here, "logs", name)
    kubectl(*here, "delete", "pod", name, "--wait=false")
    return said


def test_git_at_a_commit_although_its_branch_has_moved_on(crabpot: Crabpot, builds: dict[str, str], repositories: Repositories) -> None:
    image = crabpot.pushed(crabpot.succeed(builds["at-a-commit"]))
    assert image.text("/files/name.txt") == "wanted"
    assert image.labels["org.opencontainers.image.revision"] == repositories.wanted
    assert image.labels["org.opencontainers.image.source"] == repositories.public.url
    assert image.labels["org.opencontainers.image.ref.name"] == "refs/heads/main"


def test_git_at_a_commit_that_no_ref_was_named_for(crabpot: Crabpot, builds: dict[str, str]) -> None:
    assert crabpot.pushed(crabpot.succeed(builds["without-ref"])).text("/files/name.txt") == "wanted"


def test_a_folder_of_the_source_is_the_context(crabpot: Crabpot, builds: dict[str, str]) -> None:
    files = crabpot.pushed(crabpot.succeed(builds["sub-path"])).files
    assert set(files) == {"/files/Dockerfile", "/files/part.txt"}


def test_submodules_come_along_only_when_asked_for(crabpot: Crabpot, builds: dict[str, str]) -> None:
    if not crabpot.cluster.real:
        pytest.skip("the stand-in clones no submodules; real Kaniko only")
    assert crabpot.pushed(crabpot.succeed(builds["submodules"])).text("/files/vendor/library.txt") == "from the submodule"
    assert "/files/vendor/library.txt" not in crabpot.pushed(crabpot.succeed(builds["at-a-commit"])).files


@pytest.mark.parametrize("name", ["private-password", "private-token"])
def test_a_private_repository_by_the_credentials_of_a_secret(crabpot: Crabpot, forge: Forge, builds: dict[str, str], name: str) -> None:
    image = crabpot.pushed(crabpot.succeed(builds[name]))
    assert image.text("/files/secret-plan.txt") == "private"
    assert not [blob for blob in image.blob_texts() if forge.token.encode() in blob]
    assert forge.token not in crabpot.log(builds[name])
    assert forge.token not in crabpot.read(builds[name]).model_dump_json()


def test_the_files_of_a_config_map(crabpot: Crabpot, builds: dict[str, str]) -> None:
    files = crabpot.pushed(crabpot.succeed(builds["config-map"])).files
    assert files == {"/files/Dockerfile": COPY_ALL.encode(), "/files/configured.txt": b"from a ConfigMap"}


def test_a_folder_on_a_claim(crabpot: Crabpot, builds: dict[str, str]) -> None:
    files = crabpot.pushed(crabpot.succeed(builds["claim"])).files
    assert files == {"/files/Dockerfile": COPY_ALL.encode(), "/files/claimed.txt": b"from a claim"}


def test_a_node_s_folder_becomes_a_tar_there_that_the_node_runs(crabpot: Crabpot, builds: dict[str, str], node_folder: Path) -> None:
    """No push, no registry: built on a node from its own disk, the tar loaded into its containerd, a pod run from it."""
    record = crabpot.succeed(builds["host-path"])
    assert record.digest
    assert "artifact.published" not in crabpot.event_names(record.id)
    assert record.current.runs[0].node == crabpot.cluster.node()
    tar = node_folder / "out" / SHARED_TAR
    assert tarfile.is_tarfile(tar)
    crabpot.cluster.ctr("images", "import", str(tar))
    image = crabpot.image("host-path")
    try:
        # Never pulled: this very tar, or nothing.
        assert run_once(crabpot, "from-the-tar", image) == "built on the node"
    finally:
        crabpot.cluster.ctr("images", "rm", image)


def test_a_tar_on_a_claim(crabpot: Crabpot, builds: dict[str, str], node_folder: Path) -> None:
    crabpot.succeed(builds["tar-on-claim"])
    with tarfile.open(node_folder / "claim/claimed.tar") as archive:
        assert "manifest.json" in archive.getnames()
