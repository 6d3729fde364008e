"""Image references, digests and Git refs: what is accepted is what registries and Git accept, and is written back as it was read."""

from __future__ import annotations

import re
import subprocess
import time

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from ledger.references import (
    ImageReference,
    branch_of,
    git_tag_of,
    is_fixed,
    parse_commit,
    parse_digest,
    parse_git_ref,
    parse_registry,
    parse_repository,
    parse_tag,
    tag_from,
)

hosts = (
    st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?(\.[a-z0-9]{1,5}){1,3}", fullmatch=True)
    | st.just("localhost")
    | st.ip_addresses(v=6).map(lambda ip: f"[{ip}]")
)
registries = st.builds(lambda host, port: host if port is None else f"{host}:{port}", hosts, st.none() | st.integers(1, 65535))
components = st.from_regex(r"[a-z0-9]{1,4}((\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}", fullmatch=True)
repositories = st.lists(components, min_size=1, max_size=4).map("/".join)
tags = st.from_regex(re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", re.ASCII), fullmatch=True)
digests = st.binary(min_size=32, max_size=32).map(lambda raw: "sha256:" + raw.hex())
commits = st.binary(min_size=20, max_size=20).map(bytes.hex)
references = st.builds(ImageReference, registries, repositories, st.none() | tags, st.none() | digests)
texts = st.text() | st.text(st.sampled_from("ab1.-_/:@[]#~^*\\ \n\0é"), max_size=30)


@given(references)
def test_a_reference_is_read_back_as_it_was_written(reference: ImageReference) -> None:
    assert ImageReference.parse(str(reference)) == reference


@given(
    texts
    | references.map(str).flatmap(lambda text: st.builds(lambda at, more: text[:at] + more + text[at:], st.integers(0, len(text)), texts))
)
def test_what_is_accepted_is_written_back_as_it_was_given_and_is_safe_in_a_url(text: str) -> None:
    try:
        reference = ImageReference.parse(text)
    except ValueError:
        return
    assert str(reference) == text
    assert re.fullmatch(r"[A-Za-z0-9._:/@\[\]-]+", text, re.ASCII)
    assert ".." not in text.split("/")


@given(references, tags, digests)
def test_a_reference_with_another_tag_or_digest(reference: ImageReference, tag: str, digest: str) -> None:
    assert ImageReference.parse(f"{reference.name}:{tag}") == reference.with_tag(tag)
    assert ImageReference.parse(f"{reference.name}@{digest}") == reference.with_digest(digest)
    assert reference.with_tag(tag).reference == tag
    assert ImageReference(reference.registry, reference.repository, tag, digest).reference == digest
    assert ImageReference(reference.registry, reference.repository).reference == "latest"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("app", "name the registry"),
        ("app:1", "name the registry"),
        ("team/app:1", "name the registry"),
        ("", "name the registry"),
        ("https://r.test/app", "host name"),
        ("user@r.test/app", "digest"),
        ("r.test/", "repository"),
        ("r.test//app", "repository"),
        ("r.test/App", "repository"),
        ("r.test/a..b", "repository"),
        ("r.test/a___b", "repository"),
        ("r.test/-a", "repository"),
        ("r.test/a/", "repository"),
        ("r.test/../a", "repository"),
        ("r.test/" + "a" * 256, "repository"),
        ("r.test/app:", "tag"),
        ("r.test/app:.x", "tag"),
        ("r.test/app:-x", "tag"),
        ("r.test/app:a:b", "tag"),
        ("r.test/app:é", "tag"),
        ("r.test/app:" + "x" * 129, "tag"),
        ("r.test/app:1\n", "tag"),
        ("r.test/app\n", "repository"),
        ("r.test/app@", "digest"),
        ("r.test/app@sha256:" + "A" * 64, "digest"),
        ("r.test/app@sha256:" + "a" * 63, "digest"),
        ("r.test/app@sha512:" + "a" * 128, "digest"),
        ("r.test:0/app", "port"),
        ("r.test:65536/app", "port"),
        ("r.test:/app", "port"),
        ("r.test:٣/app", "port"),
        ("r.test:" + "9" * 5000 + "/app", "port"),
        ("r.test:080/app", "port"),
        ("-r.test/app", "host name"),
        ("r..test/app", "host name"),
        ("r.test-/app", "host name"),
        ("r_r.test/app", "host name"),
        ("[::1/app", "host name"),
        ("[:::::]/app", "host name"),
        ("[1.2]/app", "host name"),
        ("[fe80::1%eth0]/app", "host name"),
        ("x" * 254 + ".test/app", "host name"),
    ],
)
def test_a_reference_that_is_none_says_what_is_wrong(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ImageReference.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "localhost/app",
        "localhost:5000/a/b",
        "r.test/a__b/c--d.e_f:X_1.-",
        "127.0.0.1:5000/app",
        "[::1]/app",
        "[2001:db8::1]:443/app:1",
        "R.Test/app",
    ],
)
def test_good_references(text: str) -> None:
    assert str(ImageReference.parse(text)) == text


@given(registries)
def test_registries(text: str) -> None:
    assert parse_registry(text) == text


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (parse_registry, "a-" * 50_000 + "!"),
        (parse_registry, "a." * 50_000),
        (parse_repository, "a-" * 120 + "!"),
        (parse_tag, "a" * 200_000),
        (parse_git_ref, "refs/" * 50_000),
        (parse_digest, "sha256:" + "0" * 200_000),
    ],
)
def test_a_long_text_is_refused_at_once(parse: object, text: str) -> None:
    began = time.process_time()
    with pytest.raises(ValueError, match="must"):
        assert callable(parse)
        parse(text)
    assert time.process_time() - began < 1


@given(texts)
def test_every_refusal_is_a_value_error(text: str) -> None:
    for parse in (parse_registry, parse_repository, parse_tag, parse_digest, parse_commit, parse_git_ref):
        try:
            assert parse(text) == text
        except ValueError as error:
            assert len(str(error)) < 1000


@given(commits)
def test_commits(commit: str) -> None:
    assert parse_commit(commit) == commit
    for bad in (commit[:-1], commit + "0", commit.upper() + "G", commit[:-1] + "\n"):
        with pytest.raises(ValueError, match="full SHA"):
            parse_commit(bad)


ref_texts = st.text(
    st.sampled_from("aZ0.-_/@{}~^:?*[\\ !#$é\x7f\x01") | st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12
)


@settings(max_examples=150)
@given(ref_texts)
@example("a.lock")
@example("a.lock/b")
@example("@")
@example("a@{b")
@example("a./b")
@example(".a")
@example("a..b")
@example("a\n")
@example("a\x80")
def test_git_agrees_about_refs(name: str) -> None:
    ref = f"refs/heads/{name}"
    git = subprocess.run(["git", "check-ref-format", ref], check=False).returncode == 0
    try:
        ours = parse_git_ref(ref) == ref
    except ValueError:
        ours = False
    assert ours == (git and "#" not in ref), "'#' is Git's to allow and ours to refuse: it parts a context's URL from its ref"


@pytest.mark.parametrize(
    "ref",
    ["main", "heads/main", "refs/main", "refs", "refs/", "/refs/heads/a", "xrefs/heads/a", "refs/heads/" + "a" * 1100, "refs/heads/\ud800"],
)
def test_a_ref_that_is_not_a_full_name(ref: str) -> None:
    with pytest.raises(ValueError, match="full name"):
        parse_git_ref(ref)


@given(st.text())
def test_any_name_makes_a_tag(name: str) -> None:
    tag = tag_from(name)
    assert parse_tag(tag) == tag
    assert tag_from(tag) == tag


@given(tags)
def test_a_tag_makes_itself(tag: str) -> None:
    assert tag_from(tag) == tag


def test_parts_of_refs() -> None:
    assert (branch_of("refs/heads/feature/x"), git_tag_of("refs/heads/feature/x")) == ("feature/x", None)
    assert (branch_of("refs/tags/v1"), git_tag_of("refs/tags/v1")) == (None, "v1")
    assert (branch_of(None), git_tag_of(None)) == (None, None)
    assert tag_from("feature/x y") == "feature-x-y"
    assert tag_from("///") == "unnamed"


COMMIT = "0123abc" + "d" * 33
MAIN = "refs/heads/main"


@pytest.mark.parametrize(
    ("tag", "ref", "fixed"),
    [
        (COMMIT, MAIN, True),
        (COMMIT[:7], MAIN, True),
        (f"main-{COMMIT[:12]}", MAIN, True),
        (f"v{COMMIT[:8]}-slim", MAIN, True),
        (COMMIT[:6], MAIN, False),
        (COMMIT[1:9], MAIN, False),
        ("latest", MAIN, False),
        ("main", MAIN, False),
        ("1.2", MAIN, False),
        ("1.2.3", None, True),
        ("v1.2.3-rc.1", None, True),
        ("release", "refs/tags/release", True),
        ("release-1", "refs/tags/release/1", True),
        ("latest", "refs/tags/v1", False),
        # A branch's own name moves with each push to it, whatever it looks like.
        ("1.2.3", "refs/heads/1.2.3", False),
        ("1.2.3-latest", "refs/heads/1.2.3", False),
        ("1.2.3", MAIN, True),
        (f"{COMMIT[:7]}-fix", f"refs/heads/{COMMIT[:7]}-fix", False),
        (f"{COMMIT[:7]}-fix-latest", f"refs/heads/{COMMIT[:7]}-fix", False),
        (f"{COMMIT[:7]}-fix-{COMMIT[:12]}", f"refs/heads/{COMMIT[:7]}-fix", True),
    ],
)
def test_which_tags_never_move(tag: str, ref: str | None, *, fixed: bool) -> None:
    assert is_fixed(tag, commit=COMMIT, ref=ref) is fixed


@given(ref_texts, commits)
def test_a_branchs_name_is_never_a_fixed_tag(branch: str, commit: str) -> None:
    assume(branch)
    for name in (branch, f"{branch}-{commit[:9]}"):
        for tag in (tag_from(name), tag_from(f"{name}-latest")):
            assert not is_fixed(tag, commit=commit, ref=f"refs/heads/{name}")


@given(commits, st.integers(7, 40), st.from_regex(r"([g-z_.-]{0,5})", fullmatch=True))
def test_enough_of_the_commit_fixes_a_tag(commit: str, count: int, around: str) -> None:
    assert is_fixed(f"x{around}{commit[:count]}{around}", commit=commit, ref=MAIN)
