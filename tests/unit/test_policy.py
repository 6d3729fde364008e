"""Promise 11: a request uses only what its project's policy allows, and the default denies."""

from __future__ import annotations

import pytest

from ledger.errors import PolicyDenied
from ledger.policy import Policy, check, pattern_of
from tests.requests import COMMIT, make_request

OWN = "https://git.example.com/team/demo.git"
IMAGE = "registry.example.com/team/demo"
SECRET = {"secret": "s", "key": "k"}
BEYOND = [
    ("source.url", {"source": {"kind": "git", "url": "https://elsewhere.example.com/x.git", "commit": COMMIT}}, {"sources": ("https://elsewhere.example.com/*",)}),
    ("source.url", {"source": {"kind": "tarball", "url": "https://h/x.tar.gz"}}, {"sources": ("https://h/x.tar.gz",)}),
    ("source.path", {"source": {"kind": "host_path", "path": "/data/app"}}, {"host_paths": ("/data",)}),
    ("source.claim", {"source": {"kind": "claim", "claim": "src"}}, {"claims": ("src",)}),
    ("source.config_map", {"source": {"kind": "config_map", "config_map": "src"}}, {"config_maps": ("s*",)}),
    ("destinations.0", {"destinations": ["elsewhere.example.com/x:1"]}, {"destinations": ("elsewhere.example.com/**",)}),
    ("cache.repository", {"cache": {"repository": "elsewhere.example.com/c"}}, {"destinations": ("elsewhere.example.com/c",)}),
    ("tar.host_path", {"tar": {"host_path": "/out"}}, {"host_paths": ("/out",)}),
    ("tar.claim", {"tar": {"claim": "out"}}, {"claims": ("out",)}),
    ("secrets.docker_config", {"secrets": {"docker_config": SECRET}}, {"secrets": ("s",)}),
    ("secrets.google_key", {"secrets": {"google_key": SECRET}}, {"secrets": ("s",)}),
    ("secrets.git", {"secrets": {"git": {"secret": "s"}}}, {"secrets": ("s",)}),
    ("secrets.s3", {"secrets": {"s3": {"secret": "s"}}}, {"secrets": ("s",)}),
    ("secrets.mounts.npm", {"secrets": {"mounts": [{"id": "npm", "value": SECRET}]}}, {"secrets": ("s",)}),
    ("build_args.A", {"build_args": {"A": SECRET}}, {"secrets": ("s",)}),
    ("identity.image_pull_secrets", {"identity": {"image_pull_secrets": ["s"]}}, {"secrets": ("s",)}),
    ("registries.certificates.h.io", {"registries": {"certificates": {"h.io": SECRET}}}, {"secrets": ("s",)}),
    ("placement.node_name", {"placement": {"node_name": "n1"}}, {"node_names": ("n1",)}),
    ("placement.node_selector.disk", {"placement": {"node_selector": {"disk": "ssd"}}}, {"node_labels": ("disk",)}),
    ("placement.tolerations.0", {"placement": {"tolerations": [{"operator": "Exists"}]}}, {"tolerations": ("**",)}),
    ("placement.affinity", {"placement": {"affinity": {"nodeAffinity": {}}}}, {"affinity": True}),
    ("placement.runtime_class", {"placement": {"runtime_class": "kata"}}, {"runtime_classes": ("kata",)}),
    ("placement.priority_class", {"placement": {"priority_class": "high"}}, {"priority_classes": ("high",)}),
    ("identity.service_account", {"identity": {"service_account": "sa"}}, {"service_accounts": ("sa",)}),
    ("registries.insecure", {"registries": {"insecure": ["h.io:5000"]}}, {"insecure_registries": ("h.io:5000",)}),
    ("registries.skip_tls_verify", {"registries": {"skip_tls_verify": ["h.io"]}}, {"insecure_registries": ("h.io",)}),
    ("registries.mirrors", {"registries": {"mirrors": ["m.io"]}}, {"mirrors": ("m.io",)}),
    ("registries.mirrors", {"registries": {"map": {"docker.io": ["m.io/x"]}}}, {"mirrors": ("m.io/*",)}),
]  # fmt: skip


@pytest.mark.parametrize(("path", "changes", "grant"), BEYOND)
def test_what_reaches_beyond_the_project_is_denied_until_it_is_listed(path, changes, grant):
    request = make_request(**changes)
    with pytest.raises(PolicyDenied) as caught:
        check(request, Policy(destinations=(IMAGE,)), OWN)
    assert [problem.path for problem in caught.value.problems] == [path]
    assert next(iter(grant)) in str(caught.value)
    granted = {**grant, "destinations": (IMAGE, *grant.get("destinations", ()))}
    check(request, Policy(**granted), OWN)


def test_by_default_not_even_a_destination_is_allowed():
    with pytest.raises(PolicyDenied, match=r"destinations\.0"):
        check(make_request(), Policy(), OWN)


def test_a_host_path_is_allowed_with_what_is_below_it_only():
    for path, fits in (("/data", True), ("/data/a", True), ("/database", False), ("/", False)):
        request = make_request(source={"kind": "host_path", "path": path})
        policy = Policy(destinations=(IMAGE,), host_paths=("/data",))
        if fits:
            check(request, policy, OWN)
        else:
            with pytest.raises(PolicyDenied):
                check(request, policy, OWN)


def test_resources_are_capped():
    request = make_request(resources={"memory": "4Gi", "cpu": "3"})
    with pytest.raises(PolicyDenied) as caught:
        check(request, Policy(destinations=(IMAGE,), max_memory="2Gi", max_cpu="2500m"), OWN)
    assert {problem.path for problem in caught.value.problems} == {"resources.memory", "resources.cpu"}


@pytest.mark.parametrize(
    ("pattern", "text", "fits"),
    [
        ("a/*", "a/b", True), ("a/*", "a/b/c", False), ("a/**", "a/b/c", True), ("a", "ab", False), ("a.b", "axb", False),
        ("*", "x/y", False), ("refs/heads/release/*", "refs/heads/release/1", True), ("a*", "a\nb", True),
    ],
)  # fmt: skip
def test_patterns_are_anchored(pattern, text, fits):
    assert pattern_of(pattern)(text) is fits
