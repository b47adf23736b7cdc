"""The console script: `tidelog-operator`, or `python -m tidelog_operator`."""

import sys


def main() -> None:
    """Run the command line."""
    try:
        from tidelog_operator.commands import app
    except ModuleNotFoundError as error:
        missing = f"this needs the operator's packages, and {error.name} is not installed; install them: pip install 'tidelog[operator]'"
        sys.exit(f"Error: {missing}")
    app(prog_name="tidelog-operator")


if __name__ == "__main__":
    main()
