"""The cleaner learns how far the copies of the metadata in the bucket have come."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the column; no checkpoint is known yet."""
    op.add_column("cleaner", sa.Column("checkpoint_at_ms", sa.BigInteger, nullable=False, server_default=sa.text("0")))
