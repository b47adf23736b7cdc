"""What the failure of one attempt says about its outcome, and to people.

"Not done" is said only where a server said so in S3's own words, or where nothing can have left this machine (I5). What a
gateway on the way says by a bare status may come after it has passed the request on.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from aiohttp import ClientConnectorCertificateError, ClientConnectorError
from aiohttp import ClientError as HttpError
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    SSLError,
)
from botocore.exceptions import ConnectionError as ConnectionFailed
from botocore.parsers import ResponseParserError

from tidelog.errors import ObjectNotFound, StoreError, StoreUnusable
from tidelog.objects.retries import AttemptFailed

_DAMAGED_ON_THE_WAY = (
    "BadDigest", "InvalidDigest", "IncompleteBody", "RequestTimeout", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch",
)  # fmt: skip
"""The server says of a request that it did not come whole: not done, and worth another attempt."""
_TOO_MANY = ("SlowDown", "SlowDownRead", "SlowDownWrite", "TooManyRequests", "RequestLimitExceeded", "Throttling", "ThrottlingException")
_CONFLICT = ("ConditionalRequestConflict", "OperationAborted")
"""Another request for the same key was under way: this one was not done."""
_REGION = ("AuthorizationHeaderMalformed", "IllegalLocationConstraintException")


@contextmanager
def translated(asked: str, *, reads: bool = False, sent: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Raise what the caller's port knows.

    `asked` begins the sentence of an error; `reads` says that an object may be missing; `sent` whether bytes may have
    left before a connection failed.
    """
    try:
        yield
    except ClientError as error:
        raise _answered(error, asked, reads=reads) from error
    except (BotoCoreError, ResponseParserError, HttpError, OSError) as error:
        raise _unanswered(error, asked, sent=sent()) from error
    except ValueError as error:  # the S3 client's, of a header that is no number or date
        raise AttemptFailed(f"the answer cannot be read: {error}", may_happen=True) from error


def status_of(error: ClientError) -> int:
    """Return the HTTP status of an error answer."""
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def _answered(error: ClientError, asked: str, *, reads: bool) -> AttemptFailed | StoreError:
    """Say what an error answer means."""
    status = status_of(error)
    code, message = (error.response.get("Error", {}).get(name, "") for name in ("Code", "Message"))
    words = f"{code} {message} (HTTP {status})"
    if code == "NoSuchBucket":
        return StoreUnusable(f"{asked} was refused: there is no such bucket; make it, or name another")
    if status == 404 and reads:
        return ObjectNotFound(f"{asked} found nothing: there is no object of that key")
    if code in _DAMAGED_ON_THE_WAY or code in _TOO_MANY or code in _CONFLICT or status == 429:
        return AttemptFailed(words, may_happen=False)
    if status in (301, 307) or code in _REGION:
        return StoreUnusable(f"{asked} was redirected ({code}: {message}); the bucket is in another region; set the region")
    if code == "RequestTimeTooSkewed":
        return StoreUnusable(f"{asked} was denied ({code}): this machine's clock differs from the store's; set it right")
    if status in (401, 403):
        return StoreUnusable(f"{asked} was denied ({code}); check the credentials and their rights on the bucket")
    if status == 501:
        return StoreUnusable(f"{asked} was refused: {words}; use a store that has conditional writes (If-None-Match: *)")
    if status >= 500 or status < 400 or status in (408, 409):
        # Also what no S3 says: a gateway's 408, for one, may mean that the server was asked, and is slow.
        return AttemptFailed(words, may_happen=True)
    return StoreUnusable(f"{asked} was refused: {words}")


def _unanswered(error: Exception, asked: str, *, sent: bool) -> AttemptFailed | StoreUnusable:
    """Say what it means that no answer came, or none that can be read."""
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return StoreUnusable(
            f"{asked} needs credentials, but there are none ({error}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role"
        )
    below = getattr(error, "kwargs", {}).get("error")  # aiohttp's own error; botocore's calls a reset a failure to connect
    if isinstance(below, ClientConnectorCertificateError):
        return StoreUnusable(f"{asked} cannot be sent: {below}; name its authority in AWS_CA_BUNDLE")
    never_connected = isinstance(below, ClientConnectorError) or isinstance(
        error, ConnectTimeoutError | CredentialRetrievalError | SSLError
    )
    weather = (
        HTTPClientError | ConnectionFailed | CredentialRetrievalError | IncompleteReadError | ResponseParserError | HttpError | OSError
    )
    if isinstance(error, weather):
        return AttemptFailed(f"{type(error).__name__}: {error}", may_happen=sent or not never_connected)
    return StoreUnusable(f"{asked} cannot be sent: {error}")
