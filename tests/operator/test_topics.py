"""Topics as objects: made, adopted, kept as they should be, let go; and never an empty one in the place of a lost one."""

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tidelog_operator.resource import TopicSpec, TopicStatus
from tidelog_operator.topics import (
    AlterTopic,
    CreatePartitions,
    CreateTopic,
    DeleteTopic,
    Kept,
    Seen,
    SetFinalizer,
    Topic,
    TopicAction,
    TopicSeen,
    WriteTopicStatus,
    plan_topic,
    retention_ms,
)

DAY_MS = 86_400_000
DEFAULTS = Kept(retention_ms=7 * DAY_MS, retention_bytes=-1, compact=False)


@dataclass
class Model:
    """An object, and the topics that a cluster has."""

    topic: Topic
    topics: dict[str, TopicSeen] = field(default_factory=dict)
    answered: bool = True
    cluster_exists: bool = True
    made: int = 0
    gone: bool = False

    def operate(self, *, dies_after: int | None = None) -> list[TopicAction]:
        known = self.topics.get(self.topic.topic) if self.answered else None
        seen = Seen(cluster_exists=self.cluster_exists, answered=self.answered and self.cluster_exists, topic=known)
        done = list(plan_topic(self.topic, seen, 1e9)[:dies_after])
        for action in done:
            self.do(action)
        return done

    def do(self, action: TopicAction) -> None:
        match action:
            case CreateTopic(name=name, partitions=partitions, kept=kept):
                assert name not in self.topics
                self.create(name, partitions, kept)
            case CreatePartitions(name=name, partitions=partitions):
                assert partitions > self.topics[name].partitions
                self.topics[name] = replace(self.topics[name], partitions=partitions)
            case AlterTopic(name=name, kept=kept):
                self.topics[name] = replace(self.topics[name], kept=filled(kept, self.topics[name].kept))
            case DeleteTopic(name=name):
                del self.topics[name]
            case SetFinalizer(present=present):
                self.topic = replace(self.topic, finalizer=present)
                self.gone = self.topic.deleted and not present
            case WriteTopicStatus(status=status):
                self.topic = replace(self.topic, status=status)

    def create(self, name: str, partitions: int = 1, kept: Kept = DEFAULTS) -> None:
        self.made += 1
        self.topics[name] = TopicSeen(topic_id=f"id-{self.made}", partitions=partitions, kept=filled(kept, DEFAULTS))

    def settle(self) -> None:
        for _ in range(10):
            if not self.operate():
                return
        raise AssertionError("it does not come to rest")

    @property
    def ready(self) -> tuple[str, str]:
        (found,) = self.topic.status.conditions
        return found.status, found.reason


def filled(kept: Kept, by: Kept) -> Kept:
    return Kept(
        retention_ms=by.retention_ms if kept.retention_ms is None else kept.retention_ms,
        retention_bytes=by.retention_bytes if kept.retention_bytes is None else kept.retention_bytes,
        compact=kept.compact,
    )


def model(spec: TopicSpec | None = None) -> Model:
    return Model(Topic(name="clicks", generation=1, spec=spec or TopicSpec(cluster_ref="logs", partitions=2), status=TopicStatus()))


def changed(of: Model, **spec: object) -> None:
    of.topic = replace(of.topic, spec=replace(of.topic.spec, **spec))  # type: ignore[arg-type]  # each test names fields of the spec


def test_a_topic_is_made_bound_by_its_id_and_then_nothing_is_left_to_do() -> None:
    it = model()
    it.settle()
    assert it.topics["clicks"] == TopicSeen(topic_id="id-1", partitions=2, kept=DEFAULTS)
    assert (it.topic.status.topic_id, it.topic.status.partitions, it.ready) == ("id-1", 2, ("True", "AsWanted"))


def test_what_someone_else_changed_is_changed_back() -> None:
    it = model(TopicSpec(cluster_ref="logs", retention="1d", compaction=True))
    it.settle()
    it.topics["clicks"] = replace(it.topics["clicks"], kept=DEFAULTS)
    it.settle()
    assert it.topics["clicks"].kept == Kept(retention_ms=DAY_MS, retention_bytes=-1, compact=True)


def test_what_the_object_leaves_open_may_be_anything() -> None:
    it = model()
    it.settle()
    it.topics["clicks"] = replace(it.topics["clicks"], kept=replace(DEFAULTS, retention_ms=1))
    assert it.operate() == []


def test_partitions_are_added_and_never_taken() -> None:
    it = model()
    it.settle()
    changed(it, partitions=5)
    it.settle()
    assert it.topics["clicks"].partitions == 5
    it.topics["clicks"] = replace(it.topics["clicks"], partitions=7)
    it.settle()
    assert it.ready == ("False", "MorePartitions")


def test_a_topic_that_was_there_is_adopted_if_it_is_as_it_should_be() -> None:
    it = model()
    it.create("clicks", 2)
    it.settle()
    assert (it.topic.status.topic_id, it.ready) == ("id-1", ("True", "AsWanted"))


@pytest.mark.parametrize("partitions", [1, 3])
def test_a_topic_that_was_there_and_is_otherwise_is_left_alone(partitions: int) -> None:
    it = model()
    it.create("clicks", partitions)
    it.settle()
    assert it.topics["clicks"].partitions == partitions
    assert (it.topic.status.topic_id, it.ready) == ("", ("False", "ExistsOtherwise"))


def test_a_topic_that_is_gone_is_not_made_anew() -> None:
    it = model()
    it.settle()
    it.topics.clear()
    it.settle()
    assert (it.topics, it.ready) == ({}, ("False", "TopicGone"))


def test_a_topic_that_was_made_anew_by_someone_else_is_left_alone() -> None:
    it = model()
    it.settle()
    it.topics.clear()
    it.create("clicks", 1)
    it.settle()
    assert (it.topics["clicks"].partitions, it.ready) == (1, ("False", "TopicReplaced"))


def test_without_its_cluster_or_an_answer_nothing_is_done() -> None:
    it = model()
    it.cluster_exists = False
    it.settle()
    assert it.ready == ("False", "ClusterMissing")
    it.cluster_exists, it.answered = True, False
    it.settle()
    assert it.ready == ("Unknown", "ClusterDoesNotAnswer")
    assert it.topics == {}


def test_a_topic_outlives_its_object_unless_the_object_says_otherwise() -> None:
    it = model()
    it.settle()
    assert it.topic == replace(it.topic, finalizer=False)
    changed(it, deletion_policy="Delete")
    it.settle()
    assert it.topic.finalizer
    it.topic = replace(it.topic, deleted=True)
    it.answered = False
    it.settle()
    assert (it.gone, len(it.topics)) == (False, 1), "it waits until it can"
    it.answered = True
    it.settle()
    assert (it.gone, it.topics) == (True, {})


def test_only_the_topic_that_belongs_to_the_object_goes_with_it() -> None:
    it = model(TopicSpec(cluster_ref="logs", deletion_policy="Delete", partitions=2))
    it.settle()
    it.topics.clear()
    it.create("clicks", 2)
    it.topic = replace(it.topic, deleted=True)
    it.settle()
    assert (it.gone, len(it.topics)) == (True, 1)


@given(deaths=st.lists(st.integers(0, 2), max_size=8), partitions=st.integers(1, 4), retention=st.sampled_from(["", "1d", "forever"]))
def test_an_operator_that_ends_anywhere_is_followed_by_one_that_finishes(deaths: list[int], partitions: int, retention: str) -> None:
    it = model(TopicSpec(cluster_ref="logs", partitions=partitions, retention=retention, deletion_policy="Delete"))
    for dies_after in deaths:
        it.operate(dies_after=dies_after)
    it.settle()
    assert (it.made, it.topics["clicks"].partitions, it.ready) == (1, partitions, ("True", "AsWanted"))
    it.topic = replace(it.topic, deleted=True)
    for dies_after in deaths:
        it.operate(dies_after=dies_after)
    it.settle()
    assert (it.gone, it.topics) == (True, {})


@pytest.mark.parametrize(("text", "value"), [("", None), ("forever", -1), ("7d", 7 * DAY_MS), ("1h30m", 5_400_000), ("500ms", 500)])
def test_durations_are_read_as_the_command_line_reads_them(text: str, value: int | None) -> None:
    assert retention_ms(text) == value
