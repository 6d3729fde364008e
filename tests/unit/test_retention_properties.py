"""What no plan may ever do, whatever the registry looks like: checked against definitions that share no code with the plan."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.retention import Retention
from tests.unit.inventories import NEVER, NOW, RULES, goes, inventories, judge, policies, protections
from worker.registry.manifests import KNOWN, signature_subject
from worker.retention.decisions import Action, Plan, RepositoryPlan, Why, read_plan
from worker.retention.inventory import Inventory, Repository, Tag, read_inventory
from worker.retention.policy import Policies
from worker.retention.protection import QUARANTINE, Protected

FEW = settings(max_examples=50)


@st.composite
def cases(draw, *, honest=False, **fixed):
    inventory = draw(inventories(honest=honest))
    return inventory, Policies((("team", Retention(**draw(policies(**fixed)))),)), draw(protections(inventory))


def pairs(inventory: Inventory, made: Plan) -> list[tuple[Repository, RepositoryPlan]]:
    by_name = {repository.name: repository for repository in inventory.repositories}
    return [(by_name[one.name], one) for one in made.repositories]


def ordinary(name: str) -> bool:
    return not name.startswith(QUARANTINE) and signature_subject(name) is None


@FEW
@given(cases())
def test_nothing_that_stays_loses_a_part(case):
    inventory, rules, protected = case
    made = judge(inventory, rules, protected)
    for repository, decided in pairs(inventory, made):
        gone = set(decided.deletions)
        for manifest in repository.manifests:
            if manifest.digest not in gone:
                assert not gone & set(manifest.children), "a child of a kept index"
            if manifest.digest in gone and manifest.subject is not None:
                assert manifest.subject in gone, "a referrer of what stays, or of what is not known"
        for tag in repository.tags:
            subject = signature_subject(tag.name)
            if subject is not None and subject not in gone:
                assert tag.digest not in gone, "a signature of what stays, or of what is not known"


@FEW
@given(cases())
def test_a_digest_goes_only_with_all_its_tags(case):
    inventory, rules, protected = case
    for repository, decided in pairs(inventory, judge(inventory, rules, protected)):
        deleted = {one.tag for one in decided.of(Action.DELETE)}
        for tag in repository.tags:
            assert (tag.digest in decided.deletions) is (tag.name in deleted)
        assert {one.digest for one in decided.of(Action.DELETE)} == set(decided.deletions)


@FEW
@given(cases())
def test_what_is_used_outside_stays_with_its_tags(case):
    inventory, rules, protected = case
    for repository, decided in pairs(inventory, judge(inventory, rules, protected)):
        touched = {one.tag for action in (Action.DELETE, Action.UNTAG) for one in decided.of(action)}
        holding = set(protected.marks)
        while more := {one.digest for one in repository.manifests if holding & set(one.children)} - holding:
            holding |= more
        assert not holding & set(decided.deletions)
        for tag in repository.tags:
            if tag.digest in holding or f"{repository.name}:{tag.name}" in holding:
                assert tag.name not in touched


@FEW
@given(cases())
def test_the_last_tag_never_goes_and_the_bin_is_left_alone(case):
    inventory, rules, protected = case
    for repository, decided in pairs(inventory, judge(inventory, rules, protected)):
        kept = {one.tag for one in decided.of(Action.KEEP) if one.tag}
        assert not any(ordinary(tag.name) for tag in repository.tags) or any(ordinary(name) for name in kept)
        assert {tag.name for tag in repository.tags if tag.name.startswith(QUARANTINE)} <= kept


@FEW
@given(cases())
def test_what_cannot_be_judged_protects_the_whole_repository(case):
    inventory, rules, protected = case
    made = judge(inventory, rules, protected)
    for repository, decided in pairs(inventory, made):
        strange = any(manifest.media_type not in KNOWN for manifest in repository.manifests)
        if repository.trouble or strange:
            assert not decided.deletions
            assert {one.action for one in decided.decisions} <= {Action.KEEP}
        for one in (*decided.of(Action.DELETE), *decided.of(Action.UNTAG)):
            if one.tag and ordinary(one.tag):
                assert one.pushed is not None
                assert one.pushed.year > 2012
                assert one.pushed <= NOW


@FEW
@given(cases(), st.randoms(use_true_random=False))
def test_equal_registries_have_equal_plans_in_whatever_order_they_are_read(case, chance: random.Random):
    inventory, rules, protected = case

    def shuffled(items):
        return tuple(chance.sample(items, len(items)))

    other = replace(
        inventory,
        repositories=shuffled(
            tuple(replace(one, tags=shuffled(one.tags), manifests=shuffled(one.manifests)) for one in inventory.repositories)
        ),
    )
    assert judge(inventory, rules, protected).sha256 == judge(other, rules, protected).sha256


@FEW
@given(cases(max_share=1.0, max_count=10**6), RULES)
def test_a_rule_more_never_costs_an_image(case, rule):
    """As long as the cap does not bind: a cap deletes the oldest of what may go, so a tag less moves the next one up."""
    inventory, rules, protected = case
    [(project, policy)] = rules.entries
    more = Policies(((project, Retention(**{**policy.model_dump(), "keep": [*policy.model_dump()["keep"], rule]})),))
    before, after = judge(inventory, rules, protected), judge(inventory, more, protected)
    assert goes(after) <= goes(before)
    assert _touched(after) <= _touched(before)


@FEW
@given(cases(max_share=1.0, max_count=10**6), st.data())
def test_protecting_more_never_costs_an_image(case, data):
    inventory, rules, protected = case
    other = data.draw(protections(inventory))
    more = Protected(
        running={**protected.running, **other.running},
        pinned={**protected.pinned, **other.pinned},
        in_flight={**protected.in_flight, **other.in_flight},
    )
    assert _touched(judge(inventory, rules, more)) <= _touched(judge(inventory, rules, protected))


@FEW
@given(cases(max_share=1.0, max_count=10**6), st.data())
def test_a_pull_more_or_one_that_is_not_known_never_costs_an_image(case, data):
    inventory, rules, protected = case
    before = judge(inventory, rules, protected)

    def later(tag: Tag) -> Tag:
        lately = NOW - timedelta(days=data.draw(st.integers(0, 60)))
        known = tag.pulled if tag.pulled is not None and tag.pulled <= NOW else None
        return replace(tag, pulled=data.draw(st.sampled_from([None, known and max(known, lately), NOW + timedelta(days=1)])))

    more = replace(inventory, repositories=tuple(replace(one, tags=tuple(map(later, one.tags))) for one in inventory.repositories))
    assert _touched(judge(more, rules, protected)) <= _touched(before)
    assert goes(judge(more, rules, protected)) <= goes(before)


@FEW
@given(cases(keep=({"pulled": "20d"},)))
def test_what_was_used_lately_or_nobody_knows_when_stays(case):
    inventory, rules, protected = case
    for repository, decided in pairs(inventory, judge(inventory, rules, protected)):
        touched = {one.tag for action in (Action.DELETE, Action.UNTAG) for one in decided.of(action)}
        for tag in repository.tags:
            if tag.name in touched and ordinary(tag.name):
                assert tag.pulled is not None
                assert tag.pulled < NOW - timedelta(days=20)
                assert tag.pushed is not None
                assert tag.pushed < NOW - timedelta(days=20)


@FEW
@given(cases())
def test_pulls_change_nothing_where_no_rule_asks_for_them(case):
    inventory, rules, protected = case
    [(project, policy)] = rules.entries
    keep = [rule for rule in policy.model_dump()["keep"] if rule["pulled"] is None]
    rules = Policies(((project, Retention(**{**policy.model_dump(), "keep": keep or [{"last": 1}]})),))
    never = replace(
        inventory,
        repositories=tuple(
            replace(one, untold=None, tags=tuple(replace(tag, pulled=NEVER) for tag in one.tags)) for one in inventory.repositories
        ),
    )
    assert judge(never, rules, protected).sha256 == judge(inventory, rules, protected).sha256


@FEW
@given(cases())
def test_no_more_goes_than_one_plan_may_delete(case):
    inventory, rules, protected = case
    [(_, policy)] = rules.entries
    for repository, decided in pairs(inventory, judge(inventory, rules, protected)):
        of_people = [tag for tag in repository.tags if ordinary(tag.name)]
        touched = [
            one for action in (Action.DELETE, Action.UNTAG) for one in decided.of(action) if one.tag is not None and ordinary(one.tag)
        ]
        loose = [one for one in decided.of(Action.DELETE) if one.tag is None and any(reason.why is Why.UNTAGGED for reason in one.reasons)]
        assert len(touched) <= policy.max_share * len(of_people) + 1e-6
        assert len(touched) + len(loose) <= policy.max_count


@FEW
@given(cases())
def test_every_tag_and_untagged_digest_has_one_decision_with_a_reason(case):
    inventory, rules, protected = case
    for repository, decided in pairs(inventory, judge(inventory, rules, protected)):
        assert sorted(one.tag for one in decided.decisions if one.tag) == sorted(tag.name for tag in repository.tags)
        tagged = {tag.digest for tag in repository.tags}
        alone = {one.digest for one in repository.manifests} - tagged
        assert sorted(one.digest for one in decided.decisions if one.tag is None) == sorted(alone)
        assert all(one.reasons for one in decided.decisions)


@FEW
@given(cases())
def test_what_holds_goes_before_what_it_holds(case):
    inventory, rules, protected = case
    for repository, decided in pairs(inventory, judge(inventory, rules, protected)):
        order = {digest: place for place, digest in enumerate(decided.deletions)}
        for manifest in repository.manifests:
            for child in manifest.children:
                if child in order and manifest.digest in order:
                    assert order[manifest.digest] < order[child]
            if manifest.digest in order and manifest.subject in order:
                assert order[manifest.subject] < order[manifest.digest]


@FEW
@given(cases())
def test_the_bytes_freed_are_those_that_nobody_holds_any_more(case):
    inventory, rules, protected = case
    made = judge(inventory, rules, protected)

    def store(going: dict[str, set[str]]) -> dict[str, int]:
        held: dict[str, int] = {}
        for repository in inventory.repositories:
            for manifest in repository.manifests:
                if manifest.digest not in going[repository.name]:
                    held[manifest.digest] = manifest.size
                    held.update({blob.digest: blob.size for blob in manifest.blobs})
        return held

    before = store({one.name: set() for one in made.repositories})
    after = store({one.name: set(one.deletions) for one in made.repositories})
    sizes = {key: size for key, size in before.items() if key not in after}
    assert made.freed <= sum(sizes.values()) + 100 * len(sizes)  # one digest may be said to have two sizes in two repositories
    if len(made.repositories) == 1:
        assert made.freed == sum(sizes.values())


@FEW
@given(cases())
def test_a_plan_and_an_inventory_are_stored_and_read_back(case):
    inventory, rules, protected = case
    assert read_inventory(inventory.text()) == inventory
    made = judge(inventory, rules, protected)
    text = made.text()
    assert read_plan(text, made.sha256) == made
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    assert judge(read_inventory(inventory.text()), rules, protected).sha256 == made.sha256


def _touched(made: Plan) -> set[str]:
    """Tags that go, by repository, whether or not their digest goes with them."""
    return {
        f"{one.name}:{decision.tag}"
        for one in made.repositories
        for action in (Action.DELETE, Action.UNTAG)
        for decision in one.of(action)
        if decision.tag
    }
