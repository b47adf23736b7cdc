"""Stores from URLs: what the settings `bucket` and `metadata` name, opened, proved usable and counted."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from tidelog.clock import Clock
from tidelog.config import Settings
from tidelog.errors import InvalidSettings, StoreUnusable
from tidelog.executors import ThreadExecutor
from tidelog.metadata.metered import MeteredMetadataStore
from tidelog.metadata.postgres import PostgresSettings, open_postgres
from tidelog.metadata.sqlite import IN_MEMORY, open_sqlite
from tidelog.metadata.store import MetadataStore
from tidelog.metrics import Metrics
from tidelog.objects.latency import SlowStore
from tidelog.objects.local import open_directory
from tidelog.objects.memory import MemoryStore
from tidelog.objects.metered import MeteredObjectStore
from tidelog.objects.s3 import S3Settings, open_s3, probe
from tidelog.objects.store import ObjectStore
from tidelog.randomness import Random
from tidelog.telemetry import without_secrets

BUCKET_FORMS = (
    "s3://bucket/prefix?endpoint=…&region=…&path_style=true, file:///directory or memory://;"
    " the last two with ?latency=s3 to be as slow as S3"
)
METADATA_FORMS = "postgresql://USER:PASSWORD@HOST:PORT/DATABASE, sqlite:///path/of/a/file, or sqlite:// for one in memory"


_PATIENT_MS = 120_000
"""Whoever only reads holds no locks, so nobody waits for it: its statements may take longer than a broker's."""


async def open_bucket(settings: Settings, *, metrics: Metrics, clock: Clock, chance: Random, reading: bool = False) -> ObjectStore:
    """Open the object store that `settings.bucket` names. An S3 bucket is proved to keep what Tidelog rests on.

    `reading`: to look and change nothing; so nothing is proved, and a directory must be there.

    Raises InvalidSettings, and as the stores do: StoreUnavailable (try again), StoreUnusable.
    """
    url = _split("bucket", settings.bucket, BUCKET_FORMS)
    if url.scheme == "s3":
        bucket = await open_s3(s3_settings(settings), clock=clock, chance=chance)
        try:
            if not reading:
                await probe(bucket, chance=chance)
        except BaseException:
            await bucket.close()
            raise
        metrics.count_requests_of(bucket)
        return MeteredObjectStore(bucket, metrics=metrics, clock=clock)
    slow = url.query == "latency=s3"
    if url.netloc or url.fragment or (url.query and not slow):
        raise _unreadable("bucket", settings.bucket, BUCKET_FORMS)
    store: ObjectStore
    if url.scheme == "file" and url.path.strip("/"):
        if reading and not _path(url).is_dir():
            raise StoreUnusable(f"the objects were to be in {str(_path(url))!r}, but there is no such directory; name the right one")
        executor = ThreadExecutor("files", threads=settings.file_threads)
        store = open_directory(_path(url), clock=clock, chance=chance, executor=executor)
    elif url.scheme == "memory" and not url.path:
        store = MemoryStore(clock=clock)
    else:
        raise _unreadable("bucket", settings.bucket, BUCKET_FORMS)
    if slow:
        store = SlowStore(store, chance=chance)
    return MeteredObjectStore(store, metrics=metrics, clock=clock)


async def open_metadata(settings: Settings, *, metrics: Metrics, clock: Clock, reading: bool = False) -> MetadataStore:
    """Open the metadata store that `settings.metadata` names, its schema made or brought up to date.

    `reading`: beside brokers, to look and change nothing; so the schema must be this release's.

    Raises InvalidSettings, and as the stores do: MetadataUnavailable (try again), MetadataUnusable.
    """
    url = _split("metadata", settings.metadata, METADATA_FORMS)
    store: MetadataStore
    if url.scheme == "postgresql":
        store = await open_postgres(
            PostgresSettings(
                settings.metadata,
                lease_ttl_ms=max(settings.lease_ms, _PATIENT_MS) if reading else settings.lease_ms,
                pool_size=settings.metadata_connections,
                connect_timeout_ms=settings.metadata_connect_timeout_ms,
            ),
            allow_migration=not reading,
        )
    elif url.scheme == "sqlite":
        _no_more("metadata", settings.metadata, url, METADATA_FORMS)
        path = str(_path(url)) if url.path.strip("/") else IN_MEMORY
        store = await open_sqlite(path, clock=clock, executor=ThreadExecutor("sqlite", threads=1), reading=reading)
    else:
        raise _unreadable("metadata", settings.metadata, METADATA_FORMS)
    return MeteredMetadataStore(store, metrics=metrics, clock=clock)


def bucket_in_memory(settings: Settings) -> bool:
    """Say whether the setting `bucket` names a store that dies with its process."""
    return _split("bucket", settings.bucket, BUCKET_FORMS).scheme == "memory"


def metadata_in_memory(settings: Settings) -> bool:
    """Say whether the setting `metadata` names a store that dies with its process."""
    url = _split("metadata", settings.metadata, METADATA_FORMS)
    return url.scheme == "sqlite" and not url.path.strip("/")


def directory_of(bucket: str) -> Path | None:
    """Return the directory that a file:// URL names; None for other stores."""
    url = _split("bucket", bucket, BUCKET_FORMS)
    return _path(url) if url.scheme == "file" and not url.netloc and url.path.strip("/") else None


def s3_settings(settings: Settings) -> S3Settings:
    """Return how to use the bucket that an s3:// URL names; what the URL says goes before the settings."""
    url = _split("bucket", settings.bucket, BUCKET_FORMS)
    if not url.netloc or url.fragment or set(url.netloc) & set(":@"):
        raise InvalidSettings(
            f"bucket {without_secrets(settings.bucket)!r} cannot be read: after s3:// comes the bucket's name alone; write {BUCKET_FORMS}."
            " Credentials come from the usual AWS variables, files or roles"
        )
    asked = _query(settings.bucket, url, ("endpoint", "region", "path_style"))
    style = {"true": "path", "false": "virtual", "": settings.s3_addressing_style}.get(asked.get("path_style", ""))
    if style is None:
        raise InvalidSettings(f"bucket {settings.bucket!r} says path_style={asked['path_style']}; write true or false, or leave it out")
    patience = {field.name: getattr(settings, name) for field in fields(S3Settings) if hasattr(settings, name := f"s3_{field.name}")}
    return S3Settings(
        **patience
        | {
            "bucket": url.netloc,
            "prefix": unquote(url.path).strip("/"),
            "endpoint_url": asked.get("endpoint") or settings.s3_endpoint_url or None,
            "region": asked.get("region") or settings.s3_region,
            "addressing_style": style,
        }
    )


def _split(name: str, url: str, forms: str) -> SplitResult:
    if not url:
        raise InvalidSettings(f"{name} is not set; set it to {forms}")
    try:
        return urlsplit(url)
    except ValueError as error:
        raise _unreadable(name, url, forms) from error


def _query(text: str, url: SplitResult, known: Iterable[str]) -> Mapping[str, str]:
    asked = dict(parse_qsl(url.query, keep_blank_values=True))
    for parameter in asked:
        if parameter not in known:
            nearest = get_close_matches(parameter, list(known), n=1)
            ending = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(known)}"
            raise InvalidSettings(f"bucket {text!r} has a parameter {parameter!r} that an s3:// URL does not know; {ending}")
    return asked


def _no_more(name: str, text: str, url: SplitResult, forms: str) -> None:
    """Refuse what would be ignored: a host (two slashes instead of three), a query, a fragment."""
    if url.netloc or url.query or url.fragment:
        raise _unreadable(name, text, forms)


def _path(url: SplitResult) -> Path:
    return Path("/" + unquote(url.path).lstrip("/"))


def _unreadable(name: str, url: str, forms: str) -> InvalidSettings:
    return InvalidSettings(f"{name} is {without_secrets(url)!r}, which names no store that Tidelog knows; write {forms}")
