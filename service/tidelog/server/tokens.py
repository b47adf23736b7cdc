"""Bearer tokens and their scopes, from a YAML file:

tokens:
  - name: etl                # appears in telemetry and messages; the token never does
    sha256: 9f86d0…          # of the token, in hex; or `token:` with the token itself
    read: ["clicks"]         # prefixes of topic names; "" is every topic
    write: ["clicks.raw"]
    admin: []                # "" also administers the cluster
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tidelog.errors import InvalidSettings
from tidelog.server.callers import Caller

_STRICT = ConfigDict(extra="forbid", hide_input_in_errors=True)  # an error must not show a token


class _Token(BaseModel):
    model_config = _STRICT

    name: str = Field(min_length=1, max_length=100)
    sha256: str = Field("", pattern=r"^([0-9a-fA-F]{64})?$")
    token: str = ""
    read: list[str] = []
    write: list[str] = []
    admin: list[str] = []

    @model_validator(mode="after")
    def _one_secret(self) -> "_Token":
        if bool(self.sha256) == bool(self.token):
            raise ValueError(f"token {self.name!r} must have either sha256 or token")
        return self


class _File(BaseModel):
    model_config = _STRICT

    tokens: list[_Token]


Tokens = Mapping[bytes, Caller]
"""Callers by the SHA-256 of their token."""


def load_tokens(file: Path) -> Tokens:
    """Read the file. Raises InvalidSettings (which names no token), OSError."""
    try:
        read = _File.model_validate(yaml.safe_load(file.read_text()))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f" at line {mark.line + 1}"
        raise InvalidSettings(f"{file} was to be read as YAML, but is not{line}; mend it") from None
    except UnicodeDecodeError as error:
        raise InvalidSettings(f"{file} was to be read as UTF-8, but is not at byte {error.start}; mend it") from None
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, found['loc'])) or 'the file'}: {found['msg']}" for found in error.errors())
        raise InvalidSettings(f"{file} does not list tokens as docs/security.md says: {problems}") from None
    found = {_digest_of(token): Caller(token.name, tuple(token.read), tuple(token.write), tuple(token.admin)) for token in read.tokens}
    if len(found) < len(read.tokens):
        raise InvalidSettings(f"{file} lists the same token twice; give each caller one of its own")
    return found


def digest(token: str) -> bytes:
    """Return what callers are found by."""
    return hashlib.sha256(token.encode()).digest()


def _digest_of(token: _Token) -> bytes:
    return bytes.fromhex(token.sha256) if token.sha256 else digest(token.token)
