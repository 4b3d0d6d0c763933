"""rollups, filled from the rows there are"""

import sqlalchemy as sa
from alembic import op

from storage.database import begin_writing
from storage.rollup import recount

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    connection = op.get_bind()
    begin_writing(connection)  # SQLite too does all of this or nothing
    op.create_table(
        "rollups",
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("minutes", sa.Integer(), nullable=False),
        sa.Column("start", sa.Integer(), nullable=False),
        sa.Column("tally", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "minutes", "start", name=op.f("pk_rollups")),
    )
    for _ in recount(connection):
        pass


def downgrade() -> None:
    op.drop_table("rollups")
