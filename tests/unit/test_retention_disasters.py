"""What users of other tools lost, each as it happened to them: none of it happens here. The lines are those of notes/registry.md."""

from __future__ import annotations

from datetime import UTC, datetime

from tests.unit.inventories import NAME, days, digest, goes, holding, image, index, judge, policy, tag, tags_of
from worker.retention.decisions import Action
from worker.retention.inventory import Stored
from worker.retention.protection import Protected

EAGER = policy(keep=[{"matching": ["nothing-has-this-name"]}])
LAST = policy(keep=[{"last": 1}])


def images(count: int, age: float = 10):
    return [thing for number in range(count) for thing in (image(number), tag(f"t{number}", number, days(age + number)))]


def test_gitlab_325429_a_policy_that_keeps_nothing_wipes_no_repository():
    made = judge(holding(*images(20)), EAGER)
    assert "t0" in tags_of(made, Action.KEEP)
    made = judge(holding(*images(20)), policy(keep=[{"matching": ["nothing-has-this-name"]}], max_share=0.5))
    assert len(tags_of(made, Action.KEEP)) == 10


def test_gitlab_351538_of_equal_dates_the_newer_is_not_guessed():
    things = [thing for number in range(5) for thing in (image(number), tag(f"t{number}", number, days(10)))]
    assert goes(judge(holding(*things), LAST)) == set()


def test_harbor_2663_6994_8717_a_tags_siblings_stay():
    things = [*images(1, age=1), image("v1"), *(tag(name, "v1", days(50)) for name in ("v1.0.0", "v1.0", "stable"))]
    made = judge(holding(*things), policy(keep=[{"last": 1}, {"matching": ["stable"]}]))
    assert goes(made) == set()
    assert tags_of(made, Action.UNTAG) == {"v1.0.0", "v1.0"}


def test_acr_cli_131_133_an_indexs_children_are_not_untagged_images():
    old = days(400)
    things = [image("amd", untagged_since=old), image("arm", untagged_since=old), index("multi", "amd", "arm"), tag("v1", "multi", days(1))]
    assert goes(judge(holding(*things), policy(keep=[{"last": 1}], delete_untagged_after="1d"))) == set()


def test_delete_package_versions_162_90_releases_stay():
    things = [*images(10, age=1), image("r"), tag("v1.0.0", "r", days(900)), image("r2"), tag("v2.0.0", "r2", days(800))]
    made = judge(holding(*things), policy(keep=[{"last": 3}, {"matching": [r"/v\d+\.\d+\.\d+/"]}]))
    assert {"v1.0.0", "v2.0.0"} <= tags_of(made, Action.KEEP)


def test_cosign_507_signatures_outlast_every_rule_while_their_image_does():
    signed = digest(0).replace(":", "-")
    things = [*images(1, age=1), image("sig"), tag(f"{signed}.sig", "sig", days(300)), image("att"), tag(f"{signed}.att", "att", None)]
    assert goes(judge(holding(*things), EAGER)) == set()


def test_kube_image_keeper_567_images_in_use_stay_however_old():
    made = judge(holding(*images(5)), LAST, Protected(running={digest(4): "pod a/b", f"{NAME}:t3": "cron job a/c, which sleeps"}))
    assert tags_of(made, Action.KEEP) == {"t0", "t3", "t4"}


def test_kaniko_1687_reproducible_dates_say_nothing():
    first, epoch = datetime(1, 1, 1, tzinfo=UTC), datetime(1970, 1, 1, tzinfo=UTC)
    things = [*images(5), image("a"), tag("a", "a", first), image("b"), tag("b", "b", epoch)]
    assert goes(judge(holding(*things), policy(keep=[{"within": "30d"}]))) == set()


def test_registry_cli_a_look_up_that_failed_protects():
    things = [*images(5), tag("unread", "unread", days(90))]
    assert goes(judge(holding(*things), LAST)) == set()
    assert goes(judge(holding(*images(5), trouble="the HEAD of t3 answered 500"), LAST)) == set()


def test_regmaid_2_keeping_two_of_three_tags_of_a_digest_keeps_the_digest():
    things = [*images(1, age=1), image("d"), tag("a", "d", days(10)), tag("b", "d", days(11)), tag("c", "d", days(12))]
    made = judge(holding(*things), policy(keep=[{"last": 1}, {"matching": ["a", "b"]}]))
    assert goes(made) == set()
    assert tags_of(made, Action.KEEP) == {"t0", "a", "b"}


def test_openhands_684_a_hundred_thousand_tags_go_in_parts_that_the_policy_allows():
    made = judge(holding(*images(3000)), policy(keep=[{"last": 10}], max_count=1000))
    assert len(made.repositories[0].deletions) == 1000
    assert "t2999" in tags_of(made, Action.DELETE)


def test_a_type_that_nobody_knows_protects_all_around_it():
    strange = Stored(digest=digest("strange"), media_type="application/vnd.docker.distribution.manifest.v1+prettyjws", size=1)
    things = [*images(5), strange, tag("old", "strange", days(90))]
    assert goes(judge(holding(*things), LAST)) == set()
