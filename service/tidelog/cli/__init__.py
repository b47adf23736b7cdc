"""The command line. Modules load when their command runs, so that `--help` answers at once."""
