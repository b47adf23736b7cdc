"""One target under atheris: `python -m tests.fuzz.driver TARGET LIBFUZZER-OPTIONS…`; `tests.fuzz` starts these."""

import sys

import atheris

with atheris.instrument_imports(include=["tidelog"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    target = TARGETS[sys.argv[1]]
    atheris.Setup([sys.argv[0], *sys.argv[2:]], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
