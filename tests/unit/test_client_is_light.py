"""What the client loads, in a fresh interpreter: by the list of modules, because seconds depend on the machine."""

import json
import subprocess
import sys

import pytest

HEAVY = ("pydantic", "sqlalchemy", "aiobotocore", "botocore", "asyncpg", "alembic", "structlog", "aiokafka", "cramjam")
OF_THE_SERVER = tuple(f"tidelog.{name}" for name in ("server", "broker", "metadata", "objects", "segments", "config"))


def modules_after(statement: str) -> set[str]:
    program = f"import sys; before = set(sys.modules); {statement}; import json; print(json.dumps(sorted(set(sys.modules) - before)))"
    return set(json.loads(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout))


def test_importing_tidelog_loads_nothing_but_itself_and_a_little_of_the_standard_library() -> None:
    loaded = modules_after("import tidelog")
    assert {name for name in loaded if name.startswith("tidelog")} == {"tidelog"}
    assert not loaded & {"grpc", "asyncio", "google.protobuf"}


def test_the_client_loads_nothing_of_the_server_and_none_of_its_dependencies() -> None:
    loaded = modules_after("import tidelog; tidelog.connect; tidelog.Producer; tidelog.ConsumedRecord; tidelog.TidelogError")
    assert "grpc" in loaded
    assert not [name for name in loaded if name.startswith(OF_THE_SERVER)]
    assert not [name for name in loaded if name.split(".")[0] in HEAVY]


def test_a_name_that_tidelog_does_not_have_is_an_attribute_error() -> None:
    import tidelog

    with pytest.raises(AttributeError, match="no attribute 'conect'"):
        _ = tidelog.conect
    assert "connect" in dir(tidelog)
