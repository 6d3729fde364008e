"""The projects file: errors with their lines, and pushes into requests."""

from __future__ import annotations

import pytest

from ledger.errors import ProjectsInvalid
from ledger.projects import parse_projects
from tests.requests import COMMIT

GOOD = """\
version: 1
projects:
  demo:
    repository: https://git.example.com/team/demo.git
    rules:
      - ref: refs/heads/main
        image: registry.example.com/team/demo
        tags: ["{sha}", "{branch}", latest]
        build: {dockerfile: build/Dockerfile}
      - ref: refs/heads/**
        image: registry.example.com/team/demo
        tags: ["{branch}-{short_sha}"]
      - ref: refs/tags/v*
        image: registry.example.com/team/demo
        tags: ["{tag}"]
      - {ref: refs/heads/main, image: registry.example.com/team/docs}
"""


def test_a_push_makes_one_request_per_image_by_its_first_rule():
    project = parse_projects(GOOD).projects["demo"]
    on_main = list(project.requests("demo", "refs/heads/main", COMMIT))
    assert [request.destinations for request in on_main] == [
        (f"registry.example.com/team/demo:{COMMIT}", "registry.example.com/team/demo:main", "registry.example.com/team/demo:latest"),
        (f"registry.example.com/team/docs:{COMMIT}",),
    ]
    assert on_main[0].dockerfile == "build/Dockerfile"
    assert on_main[0].source.url == "https://git.example.com/team/demo.git"
    [on_branch] = project.requests("demo", "refs/heads/feature/Ünïcode", COMMIT)
    assert on_branch.destinations == (f"registry.example.com/team/demo:feature-n-code-{COMMIT[:12]}",)
    [on_tag] = project.requests("demo", "refs/tags/v1.2.0", COMMIT)
    assert on_tag.destinations == ("registry.example.com/team/demo:v1.2.0",)
    assert list(project.requests("demo", "refs/tags/other", COMMIT)) == []


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("version: 2\nprojects: {}\n", 1, "version"),
        ("version: 1\nprojects:\n  demo:\n    max_bilds: 3\n", 4, "max_bilds"),
        ("version: 1\nprojects:\n  Demo: {}\n", 3, "pattern"),
        (GOOD.replace("{branch}-{short_sha}", "{nope}"), 12, "{sha}"),
        (GOOD.replace("refs/tags/v*", "v*"), 13, "refs/"),
        (GOOD.replace("build/Dockerfile", "/Dockerfile"), 3, "dockerfile"),
        (GOOD.replace("    repository: https://git.example.com/team/demo.git\n", ""), 3, "clone URL"),
        ("version: 1\nprojects:\n  a: {names: [t/x]}\n  b: {names: [T/X]}\n", 4, "belongs to project a"),
        ("version: 1\nprojects:\n  a:\n    webhook_secret: hunter2\n", 4, "webhook_secret"),
        ("projects: [", 1, "not YAML"),
        ("version: 1\nprojects:\n  a: {}\n  b: {}\n  a: {}\n", 3, "once"),
        ("", 1, "projects"),
        ("version: 1\nprojects: {}\nclusters:\n  prod: {}\n", 4, "clusters.prod: got a value not shown here; name exactly one of token"),
        ("version: 1\nprojects: {}\nclusters:\n  prod: {token: {env: T}, in_cluster: true}\n", 4, "not token and in_cluster"),
        ("version: 1\nprojects: {}\nclusters:\n  prod: {kubeconfig: prod.yaml}\n", 4, "clusters.prod.kubeconfig"),
        ("version: 1\nprojects: {}\nclusters:\n  prod: {in_cluster: false}\n", 4, "clusters.prod.in_cluster"),
        ("version: 1\nprojects: {}\nclusters:\n  prod: {in_cluster: true, context: b}\n", 4, "context is one of a kubeconfig"),
        (
            "version: 1\nprojects: {}\nclusters:\n  prod: {token: {env: T}, revisions: 3}\n",
            4,
            "revisions is for a cluster that workers ask",
        ),
        ("version: 1\nprojects: {}\nclusters:\n  prod:\n    kubeconfig: /a\n    revisions: 0\n", 6, "clusters.prod.revisions"),
    ],
)
def test_errors_name_line_and_field(text, line, said):
    with pytest.raises(ProjectsInvalid) as caught:
        parse_projects(text, "p.yaml")
    assert said in str(caught.value)
    assert f"p.yaml:{line}:" in str(caught.value) or "not YAML" in str(caught.value)


def test_a_project_allows_what_its_own_rules_name():
    project = parse_projects(GOOD).projects["demo"]
    assert project.allowed.destinations == ("registry.example.com/team/demo", "registry.example.com/team/docs")
    assert project.policy.destinations == ()
    assert project.forge_names == ("team/demo",)
