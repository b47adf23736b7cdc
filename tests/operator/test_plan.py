"""Plans, tried on a model of a cluster: one by one, and by a state machine that lets everything fail."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tidelog_operator.actions import Action, Annotate, Apply, DrainBroker, SetDeletionCost, WriteStatus
from tidelog_operator.drains import FIRST_TO_GO, RETRY_AFTER_S, begin, go_on
from tidelog_operator.observed import STATE, Drain, Notes, Phase, SecretSeen
from tidelog_operator.resource import PodDisruptionBudget

from tests.operator.model import PARTITIONS, SPEC, Member, World


def settled(**spec: Any) -> World:
    world = World(spec=replace(SPEC, **spec))
    world.settle()
    return world


def condition(world: World, of: str) -> tuple[str, str]:
    (found,) = [each for each in world.status.conditions if each.type == of]
    return found.status, found.reason


def message(world: World, of: str) -> str:
    return next(each.message for each in world.status.conditions if each.type == of)


def test_a_new_cluster_is_made_whole_and_then_nothing_is_left_to_do() -> None:
    world = settled()
    assert set(world.objects) == {
        ("Service", "logs"), ("Service", "logs-brokers"), ("PodDisruptionBudget", "logs"), ("Deployment", "logs")
    }  # fmt: skip
    assert (world.replicas, len(world.pods)) == (3, 3)
    assert world.plan().actions == ()
    assert condition(world, "Ready") == ("True", "AllBrokersReady")
    assert condition(world, "Progressing") == ("False", "Complete")
    assert (world.status.ready_replicas, world.status.updated_replicas) == (3, 3)


def test_brokers_that_are_not_ready_are_waited_for() -> None:
    world = settled(replicas=3)
    next(iter(world.pods.values())).healthy = False
    world.kubernetes()
    world.operate()
    assert condition(world, "Progressing") == ("True", "Waiting")
    assert message(world, "Progressing") == "1 of 3 brokers are not ready yet"


def test_a_missing_secret_is_said_and_no_broker_is_made_until_it_is_there() -> None:
    world = World(secrets={})
    world.settle()
    assert ("Deployment", "logs") not in world.objects
    assert condition(world, "Degraded") == ("True", "SecretMissing")
    assert message(world, "Degraded") == "Secret database was looked for, but there is none in this namespace; create it with url"
    world.secrets = {"database": SecretSeen(keys=frozenset({"other"}), checksum="1")}
    world.operate()
    assert message(world, "Degraded") == "Secret database is there, but has no url; add what is missing (url are needed)"
    world.secrets = {"database": SecretSeen(keys=frozenset({"url"}), checksum="1")}
    world.settle()
    assert condition(world, "Ready") == ("True", "AllBrokersReady")


def test_scaling_up_is_one_change() -> None:
    world = settled()
    world.spec = replace(world.spec, replicas=5)
    scaled = world.operate()[0]
    assert isinstance(scaled, Annotate)
    assert scaled.replicas == 5
    world.settle()
    assert len(world.pods) == 5


STEPS = [
    "Annotate asked", "DrainBroker", "Annotate leaving", "SetDeletionCost", "Annotate removing", "Annotate -",
]  # fmt: skip


def told(action: Action, world: World) -> str:
    if isinstance(action, Annotate):
        return f"Annotate {action.notes.drain.phase.value if action.notes.drain else '-'}"
    return type(action).__name__


def scaled_down(world: World, *, dies_after_step: int | None = None, away_s: float = 0.0) -> list[str]:
    """Let a cluster drain one broker; return the steps. The operator may die after one of them and be away for a while."""
    steps: list[str] = []
    for _ in range(60):
        done = [told(action, world) for action in world.operate() if not isinstance(action, WriteStatus)]
        steps += done
        if done and dies_after_step == len(steps):
            world.history = ()
            waited_s = 0.0
            while waited_s < away_s:
                world.kubernetes()
                world.tidelog()
                world.now_s += 5
                waited_s += 5
        world.kubernetes()
        world.tidelog()
        world.now_s += 5
    return steps


def test_a_broker_is_drained_before_its_pod_goes_and_no_other_goes() -> None:
    world = settled()
    before = set(world.pods)
    world.spec = replace(world.spec, replicas=2)
    assert scaled_down(world) == STEPS
    assert world.replicas == 2
    assert len(before - set(world.pods)) == 1
    assert world.notes.scaled_s is not None
    assert condition(world, "Progressing") == ("False", "Complete")


@pytest.mark.parametrize("away_s", [0.0, 60.0])
@pytest.mark.parametrize("step", range(1, len(STEPS) + 1))
def test_an_operator_that_ends_after_any_step_of_a_drain_is_followed_by_one_that_finishes_it(step: int, away_s: float) -> None:
    world = settled()
    world.spec = replace(world.spec, replicas=2)
    assert scaled_down(world, dies_after_step=step, away_s=away_s) == STEPS
    assert (world.replicas, len(world.pods), world.notes.drain) == (2, 2, None)


def test_zones_stay_balanced() -> None:
    world = settled(replicas=6)
    world.spec = replace(world.spec, replicas=3)
    world.settle()
    assert sorted(pod.zone for pod in world.pods.values()) == ["a", "b", "c"]


def test_a_broker_that_does_not_hand_over_is_taken_back_and_it_is_said() -> None:
    world = settled()
    world.spec, world.stubborn = replace(world.spec, replicas=2), True
    for _ in range(40):
        world.operate()
        world.kubernetes()
        world.tidelog()
        world.now_s += 5
    assert (world.replicas, len(world.pods), world.notes.drain) == (3, 3, None)
    assert not any(member.draining for member in world.members.values())
    assert condition(world, "DrainBlocked") == ("True", "DrainTimedOut")
    assert "was not drained after 130 s: it still led 4 partitions; it serves again" in message(world, "DrainBlocked")
    world.stubborn = False
    world.operate()
    world.now_s += 1
    assert world.operate() == [], "waiting does not rewrite the status again and again"
    world.now_s += RETRY_AFTER_S
    world.settle()
    assert len(world.pods) == 2
    assert condition(world, "DrainBlocked") == ("False", "NotBlocked")


def asked() -> tuple[World, str]:
    world = settled()
    world.spec = replace(world.spec, replicas=2)
    for _ in range(3):
        world.operate()
    assert world.notes.drain is not None
    assert world.notes.drain.phase is Phase.LEAVING
    return world, world.notes.drain.pod


def test_a_drain_is_undone_at_once_when_another_broker_is_not_well() -> None:
    world, victim = asked()
    other = next(pod for pod in world.pods.values() if pod.name != victim)
    other.healthy = False
    world.kubernetes()
    for _ in range(3):
        world.operate()
    assert (world.members[victim].draining, world.notes.drain, world.replicas) == (False, None, 3)
    assert condition(world, "DrainBlocked") == ("False", "NotBlocked")
    other.healthy = True
    world.settle()
    assert len(world.pods) == 2


def spoil(world: World, how: str) -> None:
    pod = next(iter(world.pods.values()))
    if how == "sick":
        pod.healthy = False
        pod.probed_ready = False
    elif how == "ending":
        pod.terminating = True
    elif how == "gone":
        del world.pods[pod.name]
    elif how == "not a member":
        del world.members[pod.name]
    elif how == "earlier configuration":
        pod.checksum = "other"
    elif how == "not seen by Kubernetes":
        world.deployment_generation += 1
    elif how == "drains already":
        world.members[pod.name].draining = True
    else:
        world.unreachable = True


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("sick", "broker logs-1 is not ready"),
        ("ending", "pod logs-1 is still ending"),
        ("gone", "there are 2 pods of 3"),
        ("not a member", "broker logs-1 is not in the cluster's membership"),
        ("earlier configuration", "pod logs-1 still runs with an earlier configuration"),
        ("not seen by Kubernetes", "the Deployment's last change has not been seen by Kubernetes yet"),
        ("drains already", "broker logs-1 drains already, by someone else's wish"),
        ("unreachable", "no broker tells who is in the cluster"),
    ],
)
def test_no_drain_begins_unless_all_is_well_and_what_is_waited_for_is_said(how: str, sentence: str) -> None:
    world = settled()
    world.spec = replace(world.spec, replicas=2)
    spoil(world, how)
    assert [type(each) for each in world.plan().actions] == [WriteStatus]
    seen = world.children()
    assert seen.deployment
    step = begin(seen.deployment, seen.pods, world.load(), why="", now_s=world.now_s)
    assert step.action is None
    assert sentence in step.waits


def test_a_pod_is_not_removed_while_balancers_still_send_to_it() -> None:
    world, victim = asked()
    world.members[victim].led = 0
    world.now_s += 30
    world.pods[victim].probed_ready = True
    seen = world.children()
    assert seen.deployment
    step = go_on(world.spec, seen.deployment, seen.pods, world.load(), wanted=2, now_s=world.now_s)
    assert step.action is None
    assert "balancers are to notice" in step.waits
    world.kubernetes()
    assert isinstance(world.operate()[0], SetDeletionCost)


def test_an_eviction_of_the_broker_ends_its_drain_and_another_takes_its_place() -> None:
    world, victim = asked()
    world.pods[victim].terminating = True
    world.operate()
    assert (world.notes.drain, world.replicas) == (None, 3)
    world.settle()
    assert len(world.pods) == 2


def test_a_drain_is_undone_when_the_broker_is_wanted_again() -> None:
    world, victim = asked()
    world.spec = replace(world.spec, replicas=4)
    world.settle()
    assert victim in world.pods
    assert len(world.pods) == 4


def test_a_change_of_the_configuration_waits_for_the_drain() -> None:
    world, _ = asked()
    before = world.checksum
    world.spec = replace(world.spec, image="tidelog:2")
    while world.notes.drain is not None:
        world.operate()
        assert world.checksum == before or world.notes.drain is None
        world.kubernetes()
        world.tidelog()
        world.now_s += 5
    world.settle()
    assert world.checksum != before
    assert {pod.checksum for pod in world.pods.values()} == {world.checksum}


def test_another_pods_end_at_the_worst_moment_brings_the_drained_broker_back() -> None:
    world, victim = asked()
    for _ in range(20):
        if any(isinstance(each, Annotate) and each.replicas == 2 for each in world.operate()):
            break
        world.kubernetes()
        world.tidelog()
        world.now_s += 5
    other = next(name for name in world.pods if name != victim)
    del world.pods[other]  # its node is lost, and what Kubernetes then removes is not the victim
    assert len(world.pods) == world.replicas
    assert not any(isinstance(each, Annotate) for each in world.operate()), (
        "Kubernetes has not seen the new number yet, and may still choose it"
    )
    world.settle()
    assert victim in world.pods
    assert not world.members[victim].draining
    assert world.pods[victim].cost == 0


def test_a_broker_that_someone_else_drains_is_left_alone_and_named() -> None:
    world = settled()
    name = next(iter(world.members))
    world.members[name].draining = True
    world.spec = replace(world.spec, replicas=2)
    world.operate()
    assert world.notes.drain is None
    assert f"`tidelog cluster drain {name} --undo` takes it back" in message(world, "Progressing")
    assert world.status.draining_brokers == (name,)


@pytest.mark.parametrize("change", [{"image": "tidelog:2"}, {"config": {"lease_ms": "5000"}}, {"secret": "2"}])
def test_a_change_that_brokers_read_at_their_start_replaces_them_one_by_one(change: dict[str, Any]) -> None:
    world = settled()
    before = set(world.pods)
    if "secret" in change:
        world.secrets = {"database": SecretSeen(keys=frozenset({"url"}), checksum=change["secret"])}
    else:
        world.spec = replace(world.spec, **change)
    for _ in range(60):
        world.operate()
        world.kubernetes()
        world.tidelog()
        world.now_s += 5
        assert sum(map(world.ready, world.pods.values())) >= 3, "maxUnavailable is 0"
    assert set(world.pods) & before == set()
    assert world.plan().actions == ()


def test_what_someone_else_changed_is_changed_back() -> None:
    world = settled()
    service = world.objects["Service", "logs"]
    wanted = dict(service["spec"])
    service["spec"]["type"] = "NodePort"
    world.objects["Deployment", "logs"]["spec"]["strategy"] = {"type": "Recreate"}
    world.settle()
    assert world.objects["Service", "logs"]["spec"] == wanted | {"type": "ClusterIP"}
    assert world.objects["Deployment", "logs"]["spec"]["strategy"]["type"] == "RollingUpdate"


def test_what_kubernetes_adds_by_default_is_no_difference() -> None:
    world = settled()
    world.objects["Service", "logs"]["spec"]["sessionAffinity"] = "None"
    world.objects["Deployment", "logs"]["spec"]["template"]["spec"]["dnsPolicy"] = "ClusterFirst"
    assert world.plan().actions == ()


def test_an_object_that_is_not_wanted_any_more_is_deleted() -> None:
    world = settled()
    world.spec = replace(world.spec, pod_disruption_budget=PodDisruptionBudget(enabled=False))
    world.settle()
    assert ("PodDisruptionBudget", "logs") not in world.objects


def test_while_paused_nothing_is_done_but_the_status() -> None:
    world = settled()
    world.spec = replace(world.spec, paused=True, replicas=5, image="tidelog:2")
    assert [type(each) for each in world.operate()] == [WriteStatus]
    assert condition(world, "Progressing") == ("False", "Paused")


def with_three_that_wait() -> World:
    world = settled()
    world.spec = replace(world.spec, replicas=6)
    world.operate()
    for _ in range(3):
        world.kubernetes()  # no node has room for the three
    return world


@pytest.mark.parametrize("wanted", [3, 5])
def test_brokers_that_never_started_go_without_a_drain_and_no_more_than_are_too_many(wanted: int) -> None:
    world = with_three_that_wait()
    world.spec = replace(world.spec, replicas=wanted)
    scaled = world.operate()[0]
    assert isinstance(scaled, Annotate)
    assert (scaled.replicas, scaled.notes.drain) == (wanted, None)


def test_none_goes_without_a_drain_while_one_that_runs_is_not_well() -> None:
    world = with_three_that_wait()
    world.spec = replace(world.spec, replicas=3)
    world.pods["logs-1"].healthy = False
    world.kubernetes()
    assert not any(isinstance(each, Annotate) for each in world.operate())


def test_notes_that_someone_spoiled_are_as_none() -> None:
    world = settled()
    for text in ("{", "[]", '{"drain": {"pod": 1}}', '{"drain": {"phase": "x"}}', "null"):
        world.objects["Deployment", "logs"]["metadata"]["annotations"][STATE] = text
        assert world.notes == Notes()
        assert world.plan().actions == ()


def test_notes_are_read_as_they_were_written() -> None:
    drain = Drain(pod="a", phase=Phase.UNDOING, since_s=1.5, seen_s=2.5, why="w", blocked=True)
    notes = Notes(drain=drain, scaled_s=3.5, scaled_why="x", no_drain_before_s=4.5, blocked_why="y")
    assert Notes.of_text(notes.as_text()) == notes
    assert Notes.of_text(Notes().as_text()) == Notes()


class Clusters(RuleBasedStateMachine):
    """Persons, nodes, brokers and the operator itself do what they may, in any order."""

    faults = True

    @initialize(replicas=st.integers(1, 5))
    def begin(self, replicas: int) -> None:
        self.world = World(spec=replace(SPEC, replicas=replicas))
        self.world.settle()
        self.served = replicas
        """Brokers that served when last all did."""

    @rule(seconds=st.sampled_from([1.0, 5.0, 15.0, 60.0, 700.0]))
    def time_goes_by(self, seconds: float) -> None:
        self.world.now_s += seconds

    @rule()
    def kubernetes_works(self) -> None:
        self.world.kubernetes()

    @rule()
    def brokers_work(self) -> None:
        self.world.tidelog()

    @rule(dies_after=st.none() | st.integers(0, 3))
    def the_operator_works(self, dies_after: int | None) -> None:
        self.looked_at(lambda: self.world.operate(dies_after=dies_after))

    @rule(steps=st.sampled_from([1, 3, 8, 20, 40]))
    def everyone_works_for_a_while(self, steps: int) -> None:
        for _ in range(steps):
            self.looked_at(self.world.operate)
            self.world.kubernetes()
            self.world.tidelog()
            self.world.now_s += 5
            self.there_is_never_a_second_victim()
            self.planned_changes_leave_all_but_one_serving()

    def looked_at(self, operate: Callable[[], list[Action]]) -> None:
        """Let the operator work, and look at what it did."""
        world = self.world
        replicas, silent = world.replicas, bool(world.silent & set(world.pods))
        rules = world.spec.autoscaling
        ready = {name for name, pod in world.pods.items() if pod.probed_ready}
        before = world.notes.drain
        for action in operate():
            if isinstance(action, Annotate) and action.replicas < replicas:
                least = rules.min_replicas if rules.enabled else world.spec.replicas
                assert action.replicas >= least, "never below what is wanted"
                if before is not None:
                    event("a drained broker is removed")
                    assert world.members[before.pod].led == 0
                    assert world.members[before.pod].draining
                    assert before.pod not in ready, "balancers have noticed"
                    assert world.pods[before.pod].cost == FIRST_TO_GO
                    assert len(ready) >= action.replicas, "as many serve as there are to be"
                else:
                    event("brokers that never started are removed")
            if isinstance(action, Annotate) and before is None and action.notes.drain is not None:
                event("a drain begins")
                assert len(ready) == replicas, "only while all are well"
            if isinstance(action, Annotate) and before is not None and action.notes.drain and action.notes.drain.phase is Phase.UNDOING:
                event("a drain is undone")
            if isinstance(action, Annotate) and rules.enabled and silent and rules.min_replicas <= replicas <= rules.max_replicas:
                assert action.notes.drain is None or before is not None, "never because of load that is not known"
                assert action.replicas <= replicas
            if isinstance(action, DrainBroker) and not action.undo:
                assert world.notes.drain is not None
                assert world.notes.drain.pod == action.broker_id
            if isinstance(action, Apply) and action.manifest["kind"] == "Deployment" and replicas:
                event("a rolling update begins")
                assert before is None, "not beside a drain"

    @rule(replicas=st.integers(1, 6))
    def a_person_scales(self, replicas: int) -> None:
        self.world.spec = replace(self.world.spec, replicas=replicas)

    @rule()
    def a_person_wants_one_less(self) -> None:
        self.world.spec = replace(self.world.spec, replicas=max(1, self.world.replicas - 1))

    @rule(enabled=st.booleans())
    def a_person_lets_load_decide(self, enabled: bool) -> None:
        self.world.spec = replace(self.world.spec, autoscaling=replace(self.world.spec.autoscaling, enabled=enabled))

    @rule(image=st.sampled_from(["tidelog:1", "tidelog:2", "tidelog:3"]))
    def a_person_upgrades(self, image: str) -> None:
        self.world.spec = replace(self.world.spec, image=image)

    @rule(rate=st.sampled_from([10.0, 120.0, 290.0, 600.0]))
    def load_changes(self, rate: float) -> None:
        self.world.mib_per_second = rate

    @rule(unreachable=st.integers(0, 3).map(lambda dice: dice == 0), data=st.data())
    def something_is_not_known(self, unreachable: bool, data: st.DataObject) -> None:
        self.world.unreachable = unreachable
        self.world.silent = set(data.draw(st.lists(st.sampled_from(sorted(self.world.pods)), max_size=1))) if self.world.pods else set()

    @rule(stubborn=st.integers(0, 3).map(lambda dice: dice == 0))
    def brokers_are_stubborn(self, stubborn: bool) -> None:
        self.world.stubborn = stubborn

    @rule(data=st.data(), how=st.sampled_from(["node", "eviction", "sick", "well", "crash", "by hand"]))
    def a_fault(self, data: st.DataObject, how: str) -> None:
        if not self.faults or not self.world.pods:
            return
        pod = self.world.pods[data.draw(st.sampled_from(sorted(self.world.pods)))]
        if how == "node":
            del self.world.pods[pod.name]
        elif how == "eviction":
            pod.terminating = True
        elif how in ("sick", "well"):
            pod.healthy = how == "well"
        elif pod.name in self.world.members:
            self.world.members[pod.name] = Member(draining=how == "by hand", by_hand=how == "by hand")

    @invariant()
    def there_is_never_a_second_victim(self) -> None:
        world = self.world
        drained = {name for name, member in world.members.items() if member.draining and not member.by_hand}
        chosen = {name for name, pod in world.pods.items() if pod.cost}
        noted = {world.notes.drain.pod} if world.notes.drain else set()
        assert drained | chosen <= noted | {name for name in drained | chosen if name not in world.pods or world.pods[name].terminating}

    @invariant()
    def planned_changes_leave_all_but_one_serving(self) -> None:
        if self.faults:
            return
        serving = sum(map(self.world.ready, self.world.pods.values()))
        if serving >= self.world.replicas:
            self.served = self.world.replicas
        assert serving >= min(self.served, self.world.replicas) - 1

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        world.silent, world.unreachable, world.stubborn = set(), False, False
        for pod in world.pods.values():
            pod.healthy = True
        for member in world.members.values():
            member.draining = member.draining and not member.by_hand
        world.settle(passes=1000)
        rules = world.spec.autoscaling
        assert world.notes.drain is None
        assert len(world.pods) == world.replicas
        assert all(map(world.ready, world.pods.values()))
        assert {pod.checksum for pod in world.pods.values()} == {world.checksum}
        assert sum(member.led for member in world.members.values()) == PARTITIONS
        assert world.replicas == world.spec.replicas or (rules.enabled and rules.min_replicas <= world.replicas <= rules.max_replicas)
        assert world.plan().actions == ()


class PlannedClusters(Clusters):
    """The same without faults."""

    faults = False


TestAnything = Clusters.TestCase
TestAnything.settings = settings(max_examples=80, stateful_step_count=25, deadline=None)
TestPlanned = PlannedClusters.TestCase
TestPlanned.settings = settings(max_examples=80, stateful_step_count=25, deadline=None)
