"""For each anomaly the smallest history that shows it, and a near miss that does not."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest

from tests.sim.history import RULES, Asked, History, Poll, Send, check
from tests.sim.sound import sound_history


@dataclass
class Case:
    history: History
    ends: Mapping[int, int] = field(default_factory=dict)
    log_starts: Mapping[int, int] = field(default_factory=dict)

    def found(self) -> set[str]:
        return set(check(self.history, ends=self.ends, log_starts=self.log_starts))


def ok(value: int, offset: int, *, at: tuple[float, float] = (0, 1), number: int = 0, session: int | None = None) -> Send:
    return Send(None if session is None else (session, 0), number, 0, value, *at, "ok", offset)


def poll(*pairs: tuple[int, int], at: float = 2, generation: int = 0, reader: int = 0, mark: int | None = None, stream: int = 0) -> Poll:
    return Poll(reader, generation, 0, at, at, list(pairs), mark, stream)


def history(*operations: Send | Poll | Asked) -> History:
    return History(
        [each for each in operations if isinstance(each, Send)],
        [each for each in operations if isinstance(each, Poll)],
        [each for each in operations if isinstance(each, Asked)],
    )


INFO = Send(None, 0, 0, 7, 0)
FAIL = Send(None, 0, 0, 7, 0, 1, "fail")
BOTH = poll((0, 1), (1, 2))

CASES: dict[str, tuple[Case, Case]] = {
    "inconsistent offsets": (
        Case(history(ok(1, 0), INFO, poll((0, 1)), poll((0, 7), reader=1))),
        Case(history(ok(1, 0), INFO, poll((0, 1)), poll((1, 7), reader=1))),
    ),
    "duplicate": (
        Case(history(INFO, poll((0, 7)), poll((1, 7), reader=1))),
        Case(history(INFO, poll((0, 7)), poll((0, 7), reader=1))),
    ),
    "phantom": (
        Case(history(replace(INFO, began=3), poll((0, 7), at=2))),
        Case(history(replace(INFO, began=2), poll((0, 7), at=2))),
    ),
    "failed write visible": (Case(history(FAIL, poll((0, 7)))), Case(history(INFO, poll((0, 7))))),
    "lost write": (
        Case(history(ok(1, 0), ok(2, 1), poll((1, 2)))),
        Case(history(ok(1, 0), ok(2, 1), poll((1, 2))), log_starts={0: 1}),
    ),
    "unseen": (Case(history(ok(1, 0), ok(2, 1), poll((0, 1)))), Case(history(ok(1, 0), replace(INFO, value=2), poll((0, 1))))),
    "end not reached": (Case(history(ok(1, 0), poll((0, 1))), ends={0: 2}), Case(history(ok(1, 0), poll((0, 1))), ends={0: 1})),
    "poll skip": (
        Case(history(ok(1, 0), INFO, ok(2, 2), poll((0, 1)), poll((2, 2)))),
        Case(history(ok(1, 0), INFO, ok(2, 2), poll((0, 1)), poll((2, 2), generation=1))),
    ),
    "non-monotonic poll": (
        Case(history(ok(1, 0), ok(2, 1), BOTH, poll((1, 2)))),
        Case(history(ok(1, 0), ok(2, 1), BOTH, poll((1, 2), reader=1))),
    ),
    "non-monotonic send": (
        Case(history(ok(1, 1, session=5, number=0), ok(2, 0, session=5, number=1), poll((0, 2), (1, 1)))),
        Case(history(ok(1, 1, session=5, number=0), ok(2, 0, session=6, number=1), poll((0, 2), (1, 1)))),
    ),
    "real-time order": (
        Case(history(ok(1, 1, at=(0, 1)), ok(2, 0, at=(1.1, 2)), poll((0, 2), (1, 1)))),
        Case(history(ok(1, 1, at=(0, 1)), ok(2, 0, at=(0.9, 2)), poll((0, 2), (1, 1)))),
    ),
    "stale latest": (
        Case(history(ok(1, 0, at=(0, 1)), poll((0, 1)), Asked(0, 1.1, 1.2, 0))),
        Case(history(ok(1, 0, at=(0, 1)), poll((0, 1)), Asked(0, 0.9, 1.2, 0))),
    ),
    "regression": (
        Case(history(Asked(0, 0, 1, 5), Asked(0, 1.1, 2, 4))),
        Case(history(Asked(0, 0, 1, 5), Asked(0, 0.9, 2, 4))),
    ),
    "condition not met": (
        Case(history(replace(ok(1, 1), expected=0), INFO, poll((0, 7), (1, 1)))),
        Case(history(replace(ok(1, 1), expected=1), INFO, poll((0, 7), (1, 1)))),
    ),
}

MORE: dict[str, tuple[str, Case, Case]] = {
    "a value that nobody sent": ("phantom", Case(history(INFO, poll((0, 8)))), Case(history(INFO, poll((0, 7))))),
    "a value acknowledged at another offset than it is read at": (
        "duplicate",
        Case(history(ok(7, 1), poll((0, 7)), poll((1, 7), reader=1))),
        Case(history(ok(7, 0), poll((0, 7)), poll((0, 7), reader=1))),
    ),
    "a skip within one answer": (
        "poll skip",
        Case(history(ok(1, 0), ok(2, 2), INFO, poll((0, 1), (2, 2)))),
        Case(history(ok(1, 0), ok(2, 1), INFO, poll((0, 1), (1, 2)))),
    ),
    "an end at an offset that somebody has read": (
        "stale latest",
        Case(history(INFO, poll((0, 7), at=2), Asked(0, 2.1, 2.2, 0))),
        Case(history(INFO, poll((0, 7), at=2), Asked(0, 2.1, 2.2, 1))),
    ),
    "an end beyond the final one": (
        "regression",
        Case(history(ok(1, 0), poll((0, 1)), Asked(0, 0, 1, 2)), ends={0: 1}),
        Case(history(ok(1, 0), poll((0, 1)), Asked(0, 0, 1, 1)), ends={0: 1}),
    ),
    "a beginning that goes back": (
        "regression",
        Case(history(Asked(0, 0, 1, 5, 3), Asked(0, 2, 3, 5, 2))),
        Case(history(Asked(0, 0, 1, 5, 3), Asked(0, 2, 3, 5, 3))),
    ),
    "a high watermark that goes back": (
        "regression",
        Case(history(ok(1, 0), poll((0, 1), mark=3), poll(mark=2))),
        Case(history(ok(1, 0), poll((0, 1), mark=3), poll(mark=2, stream=1))),
    ),
    "a high watermark below what was read": (
        "regression",
        Case(history(INFO, poll((0, 7), mark=0))),
        Case(history(INFO, poll((0, 7), mark=1))),
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_each_anomaly_is_found_where_it_is_and_only_there(name: str) -> None:
    shows, near_miss = CASES[name]
    assert shows.found() == {name}
    assert not near_miss.found()


@pytest.mark.parametrize("name", MORE)
def test_other_faces_of_an_anomaly(name: str) -> None:
    anomaly, shows, near_miss = MORE[name]
    assert anomaly in shows.found()
    assert not near_miss.found()


def test_an_anomaly_says_when_and_where_it_was_seen() -> None:
    [anomaly] = check(history(FAIL, poll((0, 7), at=4.5)), ends={})["failed write visible"]
    assert (anomaly.at, anomaly.partition) == (4.5, 0)
    assert anomaly.what == "value 7 was refused at 1.000, but is at 0"


def test_an_append_whose_outcome_is_unknown_may_be_there_or_not() -> None:
    assert not Case(history(INFO, ok(1, 0), poll((0, 1)))).found()
    assert not Case(history(INFO, ok(1, 0), poll((0, 1), (1, 7)))).found()


def test_a_long_sound_history_has_no_anomaly_and_one_that_is_planted_in_it_is_found() -> None:
    made, ends = sound_history(3000, reads_each=2)
    assert not check(made, ends=ends)
    victim = made.polls[3]
    victim.pairs[1], victim.pairs[2] = (victim.pairs[1][0], victim.pairs[2][1]), (victim.pairs[2][0], victim.pairs[1][1])
    assert set(check(made, ends=ends)) == {"inconsistent offsets", "duplicate"}
