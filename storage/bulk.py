"""Many rows in one statement, the way each database takes them with the least work.

PostgreSQL gets one JSON parameter and unfolds it itself; SQLite, which runs in this process, gets tuples. Values are
those of the columns' types, but for JSON columns the bytes of the JSON.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cache
from operator import itemgetter
from typing import Any

from orjson import Fragment, dumps
from sqlalchemy import (
    JSON,
    Column,
    Connection,
    Float,
    Integer,
    Numeric,
    String,
    Table,
    Text,
    bindparam,
    cast,
    func,
    select,
)
from sqlalchemy import column as named
from sqlalchemy.dialects import postgresql, sqlite

from storage.table import UtcDateTime

BulkRow = Mapping[str, Any]


def insert_new(connection: Connection, table: Table, rows: Sequence[BulkRow]) -> list[int]:
    """Insert those that are not there yet. Returns the numbers that the table gave them, in their order; none where
    it gives none, or where some of the rows were there."""
    if not rows:
        return []
    if connection.dialect.name == "postgresql":
        return _unfold(connection, table, rows, is_new=True)
    return _execute_many(connection, table, rows, is_new=True)


def upsert(connection: Connection, table: Table, rows: Sequence[BulkRow]) -> None:
    """Insert them, or replace what is there under the same primary key. No key may come twice."""
    if not rows:
        return
    if connection.dialect.name == "postgresql":
        _unfold(connection, table, rows, is_new=False)
    else:
        _execute_many(connection, table, rows, is_new=False)


def _unfold(connection: Connection, table: Table, rows: Sequence[BulkRow], *, is_new: bool) -> list[int]:
    found = connection.execute(_unfolding_insert(table, is_new), {"rows": dumps(rows, default=Fragment).decode()})
    numbers = list(found.scalars()) if found.returns_rows else []
    return numbers if len(numbers) == len(rows) else []


@cache
def _unfolding_insert(table: Table, is_new: bool) -> Any:
    columns = _given(table)
    given = cast(bindparam("rows", type_=Text), JSON)
    parts = func.json_to_recordset(given).table_valued(*map(_in_json, columns))
    insert = postgresql.insert(table).from_select(columns, select(parts.render_derived(with_types=True)))
    insert = _settled(insert, table, is_new)
    number = table.autoincrement_column
    return insert if number is None else insert.returning(number)


def _in_json(column: Column[Any]) -> Any:
    """The column as it stands in JSON. Whole numbers are read as NUMERIC and texts as TEXT, so that it is the INSERT
    that rounds or refuses them, as it does with a parameter of their own."""
    kind = column.type
    if isinstance(kind, String):
        kind = Text()
    elif isinstance(kind, Float):
        kind = Float(53)
    elif isinstance(kind, Integer):
        kind = Numeric()
    return named(column.name, kind)


def _execute_many(connection: Connection, table: Table, rows: Sequence[BulkRow], *, is_new: bool) -> list[int]:
    done = connection.exec_driver_sql(_sqlite_insert(table, is_new), list(map(_tuple_maker(table), rows)))
    number = table.autoincrement_column
    if number is None or done.rowcount < len(rows):
        return []
    # The transaction has the database to itself, and gives each row the number after the highest.
    last = connection.execute(select(func.max(number))).scalar_one()
    return list(range(last - len(rows) + 1, last + 1))


@cache
def _sqlite_insert(table: Table, is_new: bool) -> str:
    insert = sqlite.insert(table).values({column.name: bindparam(column.name) for column in _given(table)})
    return str(_settled(insert, table, is_new).compile(dialect=sqlite.dialect()))


@cache
def _tuple_maker(table: Table) -> Callable[[BulkRow], tuple[Any, ...]]:
    """A function that makes the driver's parameters of a row: what SQLAlchemy's types do, without their cost."""
    columns = _given(table)
    values_of = itemgetter(*(column.name for column in columns))
    times = [place for place, column in enumerate(columns) if isinstance(column.type, UtcDateTime)]
    texts = [place for place, column in enumerate(columns) if isinstance(column.type, JSON)]

    def made(row: BulkRow) -> tuple[Any, ...]:
        values = list(values_of(row))
        for place in times:
            values[place] = values[place] and _sqlite_time(values[place])
        for place in texts:
            values[place] = values[place].decode()
        return tuple(values)

    return made


def _sqlite_time(at: datetime) -> str:
    """As SQLAlchemy keeps times in SQLite; `at` is in UTC."""
    return at.isoformat(" ", "microseconds")[:26]


def _given(table: Table) -> list[Column[Any]]:
    """The columns that rows bring; the database numbers them itself."""
    return [column for column in table.columns if column is not table.autoincrement_column]


def _settled(insert: Any, table: Table, is_new: bool) -> Any:
    if is_new:
        return insert.on_conflict_do_nothing()
    keys = list(table.primary_key.columns)
    changed = {c.name: insert.excluded[c.name] for c in table.columns if not c.primary_key}
    return insert.on_conflict_do_update(index_elements=keys, set_=changed)
