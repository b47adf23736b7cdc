"""The console script: `tidelog`, or `python -m tidelog`."""


def main() -> None:
    """Run the command line."""
    from tidelog.cli.app import app

    app()


if __name__ == "__main__":
    main()
