"""Where a bucket is, and how patient to be with it."""

from dataclasses import dataclass

from tidelog.errors import InvalidSettings
from tidelog.objects.retries import Patience
from tidelog.objects.store import check_key


@dataclass(frozen=True, slots=True)
class S3Settings:
    """Where a bucket is, and how patient to be with it. Credentials come from the usual AWS chain."""

    bucket: str
    prefix: str = ""
    """Put before every key, with a slash between."""
    endpoint_url: str | None = None
    """None: what the usual AWS variables and files say, else AWS."""
    region: str = "us-east-1"
    addressing_style: str = "auto"
    """`path`, `virtual` or `auto`."""
    sign_bodies: str = "auto"
    """Whether a write's signature covers its body: `auto` (where TLS does not protect it), `always` or `never`."""
    connect_timeout_ms: int = 2_000
    read_timeout_ms: int = 15_000
    """Limit on silence of the server within a request."""
    attempt_timeout_ms: int = 30_000
    """Limit on one request, its body included."""
    max_attempts: int = 5
    deadline_ms: int = 60_000
    """Limit on all attempts together and the waits between them."""
    backoff_base_ms: int = 50
    """Waits are drawn from 0 up to this, doubled with each attempt."""
    backoff_most_ms: int = 5_000
    max_connections: int = 64
    hedge_after_samples: int = 20
    """Requests of a kind that must have been measured before slow ones are hedged; 0 switches hedging off."""
    hedge_percentile: float = 0.99
    """A request is slow when it takes longer than this share of the recent ones, from 0 to 1."""
    hedge_most_share: float = 0.05
    """Largest share of requests that may be sent a second time, from 0 to 1."""

    def __post_init__(self) -> None:
        if not self.bucket:
            raise InvalidSettings("S3 needs a bucket, but its name is empty; set the bucket")
        if self.prefix:
            check_key(self.prefix)
        if self.endpoint_url is not None and not self.endpoint_url.startswith(("http://", "https://")):
            raise InvalidSettings(f"S3 endpoint {self.endpoint_url!r} is no URL; write it with http:// or https:// in front")
        if self.addressing_style not in ("path", "virtual", "auto"):
            raise InvalidSettings(f"S3 addressing style {self.addressing_style!r} is unknown; use path, virtual or auto")
        if self.sign_bodies not in ("auto", "always", "never"):
            raise InvalidSettings(f"S3 setting sign_bodies is {self.sign_bodies!r}; use auto, always or never")
        for name in ("connect_timeout_ms", "read_timeout_ms", "attempt_timeout_ms", "max_attempts", "deadline_ms", "max_connections"):
            if getattr(self, name) < 1:
                raise InvalidSettings(f"S3 setting {name} is {getattr(self, name)}; it must be at least 1")
        for name in ("hedge_percentile", "hedge_most_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidSettings(f"S3 setting {name} is {getattr(self, name)}; it is a share from 0 to 1")

    @property
    def patience(self) -> Patience:
        """How long to go on with one request."""
        return Patience(
            max_attempts=self.max_attempts,
            attempt_timeout_ms=self.attempt_timeout_ms,
            deadline_ms=self.deadline_ms,
            backoff_base_ms=self.backoff_base_ms,
            backoff_most_ms=self.backoff_most_ms,
        )
