"""CRC-32C, as batches, segments and S3 carry it."""

from functools import partial

import crc32c as package

_HOLD = 0

crc32c = partial(package.crc32c, gil_release_mode=_HOLD)
"""Takes bytes and, to go on, the checksum of those before them.

The interpreter is not let go of meanwhile: a megabyte takes a tenth of a millisecond, while getting the interpreter back from
another thread takes up to its switch interval.
"""
