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


def insert_numbered(connection: Connection, table: Table, rows: Sequence[BulkRow]) -> list[int]:
    """Insert those that are not there yet. Returns the numbers that the table gave them, in their order; none where
    some of the rows were there."""
    if not rows:
        return []
    if connection.dialect.name == "postgresql":
        numbers = list(_unfold(connection, table, rows, is_new=True).scalars())
        return numbers if len(numbers) == len(rows) else []
    if _execute_many(connection, table, rows, is_new=True) < len(rows):
        return []
    # The transaction has the database to itself, and gives each row the number after the highest.
    last: Any = connection.execute(select(func.max(table.autoincrement_column))).scalar_one()
    return list(range(last - len(rows) + 1, last + 1))


def insert_absent(connection: Connection, table: Table, rows: Sequence[BulkRow]) -> list[BulkRow]:
    """Insert those that are not there yet, and return them; of two with one key the first counts.

    They go in in the order of their keys, so that two transactions never lock crosswise.
    """
    key_of = _key_of(table)
    given = {key_of(row): row for row in reversed(rows)}
    wanted = [given[key] for key in sorted(given)]
    if not wanted:
        return []
    if connection.dialect.name == "postgresql":
        return [given[tuple(key)] for key in _unfold(connection, table, wanted, is_new=True)]
    # The transaction has the database to itself: what is not there now is not there when it is inserted.
    first, *_ = keys = table.primary_key.columns.values()
    named = {row[first.name] for row in wanted}
    there = {tuple(key) for key in connection.execute(select(*keys).where(first.in_(named)))}
    absent = [row for row in wanted if key_of(row) not in there]
    if absent:
        _execute_many(connection, table, absent, is_new=True)
    return absent


def upsert(connection: Connection, table: Table, rows: Sequence[BulkRow]) -> None:
    """Insert them, or replace what is there under the same primary key. No key may come twice."""
    if not rows:
        return
    if connection.dialect.name == "postgresql":
        _unfold(connection, table, rows, is_new=False)
    else:
        _execute_many(connection, table, rows, is_new=False)


def _unfold(connection: Connection, table: Table, rows: Sequence[BulkRow], *, is_new: bool) -> Any:
    return connection.execute(_unfolding_insert(table, is_new), {"rows": dumps(rows, default=Fragment).decode()})


@cache
def _unfolding_insert(table: Table, is_new: bool) -> Any:
    columns = _given(table)
    given = cast(bindparam("rows", type_=Text), JSON)
    parts = func.json_to_recordset(given).table_valued(*map(_in_json, columns))
    insert = postgresql.insert(table).from_select(columns, select(parts.render_derived(with_types=True)))
    insert = _settled(insert, table, is_new)
    return insert.returning(*table.primary_key.columns) if is_new else insert


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


def _execute_many(connection: Connection, table: Table, rows: Sequence[BulkRow], *, is_new: bool) -> int:
    """How many rows it has written."""
    return connection.exec_driver_sql(_sqlite_insert(table, is_new), list(map(_tuple_maker(table), rows))).rowcount


@cache
def _key_of(table: Table) -> Callable[[BulkRow], tuple[Any, ...]]:
    names = table.primary_key.columns.keys()
    return lambda row: tuple(row[name] for name in names)


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
