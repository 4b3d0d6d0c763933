"""rollups, filled from the rows there are"""

import sqlalchemy as sa
from alembic import op

from storage.database import begin_writing
from storage.rollup import fill

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    connection = op.get_bind()
    begin_writing(connection)
    if connection.dialect.name == "postgresql":
        # A recorder that writes meanwhile would be counted by nobody: it waits, and its entries in Redis.
        op.execute("LOCK TABLE queries, attempts IN SHARE MODE")
    op.create_table(
        "rollups",
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("minutes", sa.Integer(), nullable=False),
        sa.Column("start", sa.Integer(), nullable=False),
        sa.Column("tally", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "minutes", "start", name=op.f("pk_rollups")),
    )
    for _ in fill(connection):
        pass


def downgrade() -> None:
    op.drop_table("rollups")
