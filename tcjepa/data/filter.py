"""Row filters: a Python-like condition on index columns, translated to a pyarrow expression.

Only comparisons, `and`, `or`, `not`, `in [...]`, `is None`, numbers, strings and column names are
understood; nothing is ever evaluated as Python. A metadata column may also be named in quotes, as
in `meta["a-b"]`.
"""

from __future__ import annotations

import ast
import difflib
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.schema import META_PREFIX
from pipeline.settings import ConfigError

_META: Final = META_PREFIX.rstrip(".")
_COMPARISONS: Final[dict[type[ast.cmpop], Callable[[Any, Any], Any]]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


@dataclass(frozen=True)
class Clause:
    """One of the conditions that a row must meet, as written and as pyarrow runs it."""

    text: str
    expression: pc.Expression


def parse(text: str, schema: pa.Schema) -> list[Clause]:
    """Return the clauses that `and` joins at the top of a filter.

    As in SQL, a row whose value is null meets no comparison; ask with `column is None`. Raises
    `ConfigError` for anything outside the language, an unknown column (naming the nearest and all
    that exist) and a comparison of unlike types.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise ConfigError(
            f"data.filter: {text!r} is not a condition: {error}; a column whose name is no Python "
            f"name is written as in {_META}['a-b']"
        ) from error
    joined = isinstance(tree, ast.BoolOp) and isinstance(tree.op, ast.And)
    parts = tree.values if joined and isinstance(tree, ast.BoolOp) else [tree]
    try:
        clauses = [Clause(ast.unparse(part), _translate(part, schema)) for part in parts]
    except OverflowError as error:
        raise ConfigError(f"data.filter: a number of {text!r} is too large: {error}") from error
    for clause in clauses:
        try:
            schema.empty_table().filter(clause.expression)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            raise ConfigError(f"data.filter: cannot apply {clause.text!r}: {error}") from error
    return clauses


def columns_of(clause: Clause, schema: pa.Schema) -> list[str]:
    """Return the columns that a clause of `parse` looks at, in schema order."""
    nodes = ast.walk(ast.parse(clause.text, mode="eval"))
    named = {_name(node) for node in nodes}
    return [name for name in schema.names if name in named]


def conjunction(clauses: Sequence[Clause]) -> pc.Expression:
    """Return the expression that holds where every clause does."""
    whole = pc.scalar(True)
    for clause in clauses:
        whole = whole & clause.expression
    return whole


def _translate(node: ast.expr, schema: pa.Schema) -> Any:
    match node:
        case ast.BoolOp(op=op, values=values):
            terms = [_translate(value, schema) for value in values]
            whole = terms[0]
            for term in terms[1:]:
                whole = whole & term if isinstance(op, ast.And) else whole | term
            return whole
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return ~_translate(operand, schema)
        case ast.Compare(left=left, ops=ops, comparators=rights):
            whole = pc.scalar(True)
            for sign, low, high in zip(ops, [left, *rights[:-1]], rights, strict=True):
                whole = whole & _compare(low, sign, high, schema)
            return whole
        case ast.Name() | ast.Attribute() | ast.Subscript():
            return pc.field(_column(node, schema))
    raise _refusal(node)


def _compare(left: ast.expr, op: ast.cmpop, right: ast.expr, schema: pa.Schema) -> Any:
    if isinstance(op, ast.Is | ast.IsNot):
        if not (isinstance(right, ast.Constant) and right.value is None):
            raise _refusal(right)
        null = pc.field(_column(left, schema)).is_null()
        return null if isinstance(op, ast.Is) else ~null
    if isinstance(op, ast.In | ast.NotIn):
        if not isinstance(right, ast.List | ast.Tuple):
            raise _refusal(right)
        name = _column(left, schema)
        values = [_literal(item) for item in right.elts]
        field = pc.field(name)
        try:
            listed = field.isin(pa.array(values, type=schema.field(name).type))
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ConfigError(f"data.filter: {ast.unparse(right)} for {name!r}: {error}") from error
        # pyarrow says false for null, which `not` would turn into true.
        found = pc.if_else(field.is_valid(), listed, pc.scalar(pa.scalar(None, pa.bool_())))
        return found if isinstance(op, ast.In) else ~found
    return _COMPARISONS[type(op)](*_operands(left, right, schema))


def _operands(left: ast.expr, right: ast.expr, schema: pa.Schema) -> tuple[Any, Any]:
    """Return both sides; a number next to a float32 column is rounded to float32 like its rows.

    Otherwise a stored score of 0.7 would be compared as 0.69999999 and fail `>= 0.7`.
    """
    sides = (left, right)
    columns = [_column(side, schema) for side in sides if _name(side) is not None]
    types = {schema.field(column).type for column in columns}

    def operand(side: ast.expr) -> Any:
        if _name(side) is not None:
            return pc.field(_column(side, schema))
        value = _literal(side)
        if types == {pa.float32()} and isinstance(value, int | float):
            return pc.scalar(pa.scalar(value, pa.float32()))
        return pc.scalar(value)

    return operand(left), operand(right)


def _literal(node: ast.expr) -> bool | int | float | str:
    match node:
        case ast.Constant(value=bool() | int() | float() | str() as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
    raise _refusal(node)


def _name(node: ast.AST) -> str | None:
    """Return the column that a node is the name of: `kept`, `meta.licence`, `meta["a-b"]`."""
    match node:
        case ast.Name() | ast.Attribute():
            return ast.unparse(node)
        case ast.Subscript(value=ast.Name(id=before), slice=ast.Constant(value=str(key))):
            return META_PREFIX + key if before == _META else None
    return None


def _column(node: ast.expr, schema: pa.Schema) -> str:
    name = _name(node)
    if name is None:
        raise _refusal(node)
    if name not in schema.names:
        near = difflib.get_close_matches(name, schema.names, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(
            f"data.filter: unknown column {name!r}; {hint}columns: {', '.join(schema.names)}"
        )
    return name


def _refusal(node: ast.expr) -> ConfigError:
    return ConfigError(
        f"data.filter: {ast.unparse(node)!r} is not understood; use comparisons of columns with "
        "numbers or strings, `in [...]`, `is None`, and, or, not"
    )
