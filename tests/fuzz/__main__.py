"""Coverage-guided fuzzing of every decoder that meets outside bytes: `make fuzz MINUTES=…`.

Needs atheris, which comes with an environment of its own (`requirements-fuzz.txt`). Begins from the corpus that is checked in,
keeps what is new under `.fuzz`, and ends with an error where a target raised what it should not. `--keep` then takes the smallest
inputs that reach anything new into the corpus.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
WORK = Path(".fuzz")
LIMITS = ("-max_len=4096", "-timeout=10", "-rss_limit_mb=1024")
"""Bytes of an input, seconds and megabytes that one may take."""


def drive(target: str, seconds: float, *, keep: bool) -> bool:
    """Fuzz one target in a process of its own; return whether nothing was found."""
    found, crashes, known = WORK / target, WORK / "crashes", CORPUS / target
    for folder in (found, crashes, known):
        folder.mkdir(parents=True, exist_ok=True)
    options = [*LIMITS, f"-artifact_prefix={crashes}/{target}-", f"-max_total_time={seconds:.0f}", "-print_final_stats=1"]
    done = _driver(target, *options, str(found), str(known))
    units = re.search(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)
    print(f"{target}: {units[1] if units else 'no'} inputs in {seconds:.0f} s, {len(list(found.iterdir()))} of them kept", flush=True)
    if done.returncode:
        print(done.stdout, done.stderr, sep="\n", flush=True)
    elif keep:
        _driver(target, *LIMITS, "-merge=1", str(known), str(found)).check_returncode()
    return not done.returncode


def _driver(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "tests.fuzz.driver", *arguments], check=False, capture_output=True, text=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", default=list(TARGETS), help=f"which of {', '.join(TARGETS)}; default: all")
    parser.add_argument("--minutes", type=float, default=5, help="for all targets together (default %(default)s)")
    parser.add_argument("--keep", action="store_true", help="add what is new and small to the corpus")
    asked = parser.parse_args()
    failed = [target for target in asked.targets if not drive(target, asked.minutes * 60 / len(asked.targets), keep=asked.keep)]
    print("found: " + (f"see {WORK / 'crashes'} for {', '.join(failed)}" if failed else "nothing"))
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
