"""How many brokers, by load: over a day's curve, at its limits, and where load is not known."""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import pytest
from tidelog_operator.observed import Recommendation, Report
from tidelog_operator.resource import Autoscaling, ClusterSpec, MetadataStore, ScaleDown, SecretKey, Storage
from tidelog_operator.scaling import GAP_S, STALE_AFTER_S, Decision, decide, demand

MIB = 1024 * 1024
SPEC = ClusterSpec(
    image="i",
    storage=Storage(bucket="bucket"),
    metadata_store=MetadataStore(url_secret_ref=SecretKey(name="s")),
    autoscaling=Autoscaling(enabled=True, min_replicas=2, max_replicas=8),
)
EVERY_S = 15.0


@dataclass(frozen=True, slots=True)
class Moment:
    at_s: float
    mib_per_second: float
    brokers: int
    why: str


def reports(count: int, *, mib_per_second: float = 0.0, cpu: float = 0.0, at_s: float = 0.0) -> dict[str, Report]:
    """What each of so many brokers tells, the load spread evenly."""
    each = Report(
        at_s=at_s,
        cpu_cores=cpu / count,
        produce_bytes_per_second=mib_per_second * MIB / count,
        in_flight_share=mib_per_second / count / 500,
    )
    return {f"b{index}": each for index in range(count)}


def followed(
    load: Callable[[float], float], *, seconds: float, brokers: int = 2, spec: ClusterSpec = SPEC, restarts: Iterable[float] = ()
) -> list[Moment]:
    """Let the number of brokers follow a load of so many MiB/s; at `restarts` the operator forgets what was in its memory."""
    history: tuple[Recommendation, ...] = ()
    scaled_s: float | None = None
    moments, forgets, now_s = [], sorted(restarts), 0.0
    while now_s <= seconds:
        if forgets and now_s >= forgets[0]:
            history = ()
            forgets.pop(0)
        rate = load(now_s)
        told = decide(
            spec,
            current=brokers,
            pods=list(reports(brokers)),
            reports=reports(brokers, mib_per_second=rate, at_s=now_s),
            history=history,
            scaled_s=scaled_s,
            now_s=now_s,
        )
        if told.replicas != brokers:
            brokers, scaled_s = told.replicas, now_s
        history = told.history
        moments.append(Moment(now_s, rate, brokers, told.why))
        now_s += EVERY_S
    return moments


def curve(now_s: float) -> float:
    """Quiet, ramp, peak, quiet: MiB/s, with a tremble of 5 % as real load has it."""
    minute = now_s / 60
    rate = 40.0 if minute < 20 else 40 + (minute - 20) * 13 if minute < 40 else 300.0 if minute < 80 else 40.0
    return rate * (1.05 if int(now_s / EVERY_S) % 2 else 0.95)


def changes(moments: list[Moment]) -> list[tuple[float, int, int]]:
    return [(b.at_s, a.brokers, b.brokers) for a, b in itertools.pairwise(moments) if a.brokers != b.brokers]


def test_it_follows_a_load_curve_without_flapping() -> None:
    moments = followed(curve, seconds=3 * 3600)
    made = changes(moments)
    print("\n| minute | MiB/s | brokers | which should take |\n|---|---|---|---|")  # pytest -s shows it
    for index, moment in enumerate(moments):
        if index % 40 == 0 or (moment.at_s, moment.brokers) in [(at_s, after) for at_s, _, after in made]:
            print(f"| {moment.at_s / 60:.1f} | {moment.mib_per_second:.0f} | {moment.brokers} | {moment.brokers * 50} |")
    ups, downs = [each for each in made if each[2] > each[1]], [each for each in made if each[2] < each[1]]
    assert moments[-1].brokers == 2
    assert max(moment.brokers for moment in moments) == 6, "300 MiB/s at 50 each; a tremble of 5 % is within the tolerance"
    assert made == ups + downs, "once up, once down, and no back and forth"
    assert all(after - before == -1 for _, before, after in downs)
    assert all(later[0] - earlier[0] >= 300 for earlier, later in itertools.pairwise(downs))
    assert downs[0][0] - 80 * 60 >= 1800
    assert max(moment.mib_per_second / (moment.brokers * 50) for moment in moments) < 1.3, "no broker takes much more than it should"


@pytest.mark.parametrize("tremble", [0.02, 0.05, 0.08])
def test_load_that_trembles_around_a_whole_number_of_brokers_changes_nothing(tremble: float) -> None:
    moments = followed(lambda now_s: 200 * (1 + tremble * (-1) ** int(now_s / EVERY_S)), seconds=2 * 3600, brokers=4)
    assert changes(moments) == []


def test_load_that_swings_within_the_long_while_scales_up_once_and_stays() -> None:
    swings = followed(lambda now_s: 300.0 if int(now_s / 600) % 2 else 60.0, seconds=4 * 3600)
    made = changes(swings)
    assert made
    assert all(after > before for _, before, after in made), "each quiet time is shorter than what must be quiet before one is taken"


def test_a_spike_shorter_than_the_short_while_adds_nothing() -> None:
    assert changes(followed(lambda now_s: 400.0 if now_s % 300 == 0 else 60.0, seconds=3600)) == []


def test_a_new_leader_of_the_operator_sees_the_long_while_itself_before_it_takes_a_broker() -> None:
    made = changes(followed(lambda _: 60.0, seconds=2 * 3600, brokers=4, restarts=[1000.0, 2500.0]))
    assert [after for *_, after in made] == [3, 2]
    assert made[0][0] >= 2500 + 1800


def decided(count: int, **given: object) -> Decision:
    now_s = 10_000.0
    history = tuple(Recommendation(at_s=now_s - 2000 + step * 20, replicas=1) for step in range(100))
    told = reports(count, mib_per_second=10.0, at_s=now_s)
    usual: dict[str, object] = {
        "current": count, "pods": list(told), "reports": told, "history": history, "scaled_s": None, "now_s": now_s
    }  # fmt: skip
    return decide(SPEC, **(usual | given))  # type: ignore[arg-type]  # each test gives what it is about


def test_one_goes_after_a_long_quiet_while() -> None:
    assert decided(5).replicas == 4


@pytest.mark.parametrize("late_s", [STALE_AFTER_S + 1, -1.0])
def test_nothing_is_scaled_while_one_brokers_load_is_not_known(late_s: float) -> None:
    known = reports(5, at_s=10_000.0)
    stale = known | {"b3": replace(known["b3"], at_s=10_000.0 - late_s)}
    silent = {name: report for name, report in known.items() if name != "b3"}
    for told in (stale, silent):
        held = decided(5, reports=told)
        assert (held.replicas, held.active, held.why) == (5, False, "the load of b3 is not known: nothing is scaled")


def test_a_gap_in_what_was_known_begins_the_long_while_anew() -> None:
    whole = decided(5).history
    gap = tuple(each for each in whole if not 9000 < each.at_s <= 9000 + GAP_S)
    assert decided(5, history=gap).replicas == 5


def test_a_number_outside_the_limits_is_brought_back_whatever_is_known() -> None:
    assert decided(1, reports={}).replicas == 2
    assert decided(9, reports={}).replicas == 8
    assert decided(12).replicas == 11, "one at a time"


def test_at_its_limit_it_says_so() -> None:
    busy = decided(8, reports=reports(8, mib_per_second=1000.0, at_s=10_000.0), history=())
    assert (busy.replicas, busy.limited) == (8, True)


def test_the_busiest_signal_decides_and_is_named() -> None:
    assert demand(SPEC, list(reports(3, cpu=6.0).values())).signal == "6.00 cores are used, 0.60 are for each broker"
    assert demand(SPEC, list(reports(3, mib_per_second=300.0).values())).brokers == pytest.approx(6.0)


def test_memory_does_not_grow_with_the_number_of_events() -> None:
    history: tuple[Recommendation, ...] = ()
    for step in range(20_000):
        told = reports(4, mib_per_second=200.0, at_s=step / 10)
        history = decide(SPEC, current=4, pods=list(told), reports=told, history=history, scaled_s=None, now_s=step / 10).history
    assert len(history) < 2000 / 2.5 + 10


def test_without_a_long_while_to_wait_for_it_goes_by_what_is_now() -> None:
    quick = replace(SPEC, autoscaling=replace(SPEC.autoscaling, scale_down=ScaleDown(stabilization_seconds=0, period_seconds=1)))
    told = reports(4, mib_per_second=10.0, at_s=50.0)
    assert decide(quick, current=4, pods=list(told), reports=told, history=(), scaled_s=None, now_s=50.0).replicas == 3
