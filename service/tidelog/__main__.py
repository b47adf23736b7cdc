"""The console script: `tidelog`, or `python -m tidelog`."""

import os
import sys


def main() -> None:
    """Run the command line."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what it would print between our lines, our errors say better
    try:
        from tidelog.cli.app import app

        app(prog_name="tidelog")
    except KeyboardInterrupt:  # while modules load
        sys.exit(130)


if __name__ == "__main__":
    main()
