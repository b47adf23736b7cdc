"""An object store in an S3-compatible bucket: the one package that knows S3.

`settings` says where the bucket is; `store` asks; `bodies` are what is sent; `verdicts` decide what a failed attempt says
about its outcome (I5); `probe` proves before a broker starts that the bucket keeps what Tidelog rests on, `trials` more of it
for whoever chooses a store.
"""

from tidelog.objects.s3.probe import probe
from tidelog.objects.s3.settings import S3Settings
from tidelog.objects.s3.store import S3Store, open_s3
from tidelog.objects.s3.trials import trials

__all__ = ["S3Settings", "S3Store", "open_s3", "probe", "trials"]
