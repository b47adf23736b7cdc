"""The .proto files as others rely on them: generated code is fresh, nothing that was once there changes, all of it is explained."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import grpc_tools
import pytest
import tidelog.proto.v1
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor
from grpc_tools import protoc
from tidelog.proto.v1 import admin_pb2, log_pb2, peers_pb2, segment_pb2

FOLDER = Path(tidelog.proto.v1.__path__[0])
KEPT = Path(__file__).parents[1] / "golden" / "contract-v1.txt"
PUBLIC = (log_pb2.DESCRIPTOR, admin_pb2.DESCRIPTOR)
FILES = (*PUBLIC, peers_pb2.DESCRIPTOR, segment_pb2.DESCRIPTOR)
TYPES = {getattr(FieldDescriptor, name): name[5:].lower() for name in dir(FieldDescriptor) if name.startswith("TYPE_")}


def promises() -> Iterator[str]:
    """Yield a line for each thing that programs of others rely on."""
    for file in PUBLIC:
        for service in file.services_by_name.values():
            for method in service.methods:
                taken = ("stream " if method.client_streaming else "") + method.input_type.full_name
                given = ("stream " if method.server_streaming else "") + method.output_type.full_name
                yield f"rpc {service.full_name}.{method.name}({taken}) -> {given}"
        for message in file.message_types_by_name.values():
            yield from promises_of(message)


def promises_of(message: Descriptor) -> Iterator[str]:
    for field in message.fields:
        named = field.message_type or field.enum_type
        kind = named.full_name if named else TYPES[field.type]
        presence = "repeated " if field.is_repeated else "optional " if field.has_presence and field.message_type is None else ""
        oneof = field.containing_oneof
        among = f" in oneof {oneof.name}" if oneof and not oneof.name.startswith("_") else ""
        yield f"{message.full_name} {field.number} {field.name}: {presence}{kind}{among}"
    for nested in message.nested_types:
        if not nested.GetOptions().map_entry:
            yield from promises_of(nested)


def test_no_promise_of_the_contract_is_broken() -> None:
    """A field or a call that is not there any more, or is another now, breaks programs of others. New ones are added to the list."""
    kept, now = KEPT.read_text().splitlines(), sorted(promises())
    assert [line for line in kept if line not in now] == [], "a breaking change"
    assert now == kept, f"write the new promises into {KEPT.name}: .venv/bin/python -m tests.unit.test_contract"


def test_generated_code_is_what_the_proto_files_give(tmp_path: Path) -> None:
    source = tmp_path / "source" / "tidelog" / "proto" / "v1"
    source.mkdir(parents=True)
    for proto in FOLDER.glob("*.proto"):
        shutil.copy(proto, source)
    made = tmp_path / "made"
    made.mkdir()
    protos = sorted(map(str, source.glob("*.proto")))
    with_services = [proto for proto in protos if not proto.endswith("segment.proto")]
    root = ["protoc", f"-I{tmp_path / 'source'}", f"-I{Path(grpc_tools.__file__).parent / '_proto'}"]
    assert protoc.main([*root, f"--python_out={made}", f"--pyi_out={made}", *protos]) == 0
    assert protoc.main([*root, f"--grpc_python_out={made}", *with_services]) == 0
    fresh = {file.name: file.read_text() for file in (made / "tidelog" / "proto" / "v1").iterdir()}
    there = {file.name: file.read_text() for file in FOLDER.glob("*_pb2*.py*")}
    assert there == fresh, "make proto"


def uncommented(text: str) -> Iterator[str]:
    """Yield fields and calls without a comment, on their line or above it."""
    above = ""
    for line in map(str.strip, text.splitlines()):
        statement, _, comment = line.partition("//")
        declares = re.match(r"(rpc \w+\(|((repeated|optional) )?[\w.<>, ]+ \w+ = \d+;)", statement)
        if declares and not comment.strip() and not above:
            yield line
        above = comment if not statement.strip() else ""


@pytest.mark.parametrize("name", sorted(file.name for file in FOLDER.glob("*.proto")))
def test_every_field_and_call_is_explained(name: str) -> None:
    text = (FOLDER / name).read_text()
    assert list(uncommented(text)) == []
    assert list(uncommented("message A {\n  int32 code = 1;\n  int32 b = 2;  // so\n}")) == ["int32 code = 1;"], "the test sees what is not"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_value_that_is_not_set_is_never_mistaken_for_one(file: FileDescriptor) -> None:
    """Zero is what every language gives for what was not sent, so no enumeration may mean something by it."""
    for kind in file.enum_types_by_name.values():
        assert kind.values_by_number[0].name.endswith("_UNSPECIFIED")


if __name__ == "__main__":
    KEPT.write_text("\n".join(sorted(promises())) + "\n")
