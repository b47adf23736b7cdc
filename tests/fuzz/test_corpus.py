"""What fuzzing has found worth keeping is replayed, whole and damaged, wherever tests run; `make fuzz` searches for more."""

import random
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
DAMAGED_EACH = 20
MOST_BYTES = 500_000
"""Of all that is checked in."""


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Return an input with a few bytes changed, cut out or repeated."""
    found = bytearray(content)
    for _ in range(chance.randrange(1, 5)):
        at = chance.randrange(len(found) + 1)
        match chance.randrange(4):
            case 0:
                found[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                del found[at : at + chance.randrange(1, 16)]
            case 2:
                found[at:at] = found[at : at + chance.randrange(1, 16)]
            case _:
                found[at : at + 4] = chance.choice((b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0" * 4, b"\x80\0\0\0"))
    return bytes(found)


@pytest.mark.parametrize("target", TARGETS)
def test_every_input_of_the_corpus_is_accepted_or_refused_as_promised(target: str) -> None:
    chance = random.Random(target)
    files = sorted((CORPUS / target).iterdir())
    assert files
    for file in files:
        content = file.read_bytes()
        TARGETS[target](content)
        for _ in range(DAMAGED_EACH):
            TARGETS[target](damaged(content, chance))


def test_the_corpus_is_small() -> None:
    assert sum(file.stat().st_size for file in CORPUS.rglob("*") if file.is_file()) < MOST_BYTES
