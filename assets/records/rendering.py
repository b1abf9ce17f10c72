"""Tables, pictures and column descriptions, as the Dagster UI shows them.

The UI shows tables and text letter by letter, and obeys Markdown: it fetches its pictures, also
those whose address is a mutation of its own GraphQL. So what strangers wrote is a table or text.
Markdown is made in this file alone, and names stand in it as code. Descriptions of checks are
Markdown, too, whatever Dagster calls them.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import dagster as dg

if TYPE_CHECKING:
    import pyarrow as pa

# HTML, links and pictures, definitions of their addresses, and what the UI takes for an address.
_OBEYED = re.compile(r"<|\][(\[]|^\W*\[.*\]:|://|www\.|\S@\S", re.IGNORECASE | re.MULTILINE)
INLINE = 900  # characters that the UI shows of a picture or a sample without a click


def table(rows: Sequence[Mapping[str, Any]]) -> dg.TableMetadataValue:
    """Rows as a table in the UI. A cell that a row lacks is empty; no rows give an empty table."""
    columns = list(dict.fromkeys(name for row in rows for name in row)) or ["what"]
    schema = dg.TableSchema(
        columns=[dg.TableColumn(name, _column_type(rows, name)) for name in columns]
    )
    records = [dg.TableRecord({name: _cell(row.get(name)) for name in columns}) for row in rows]
    return dg.MetadataValue.table(records=records, schema=schema)


def picture(png: bytes | None, title: str) -> dg.MarkdownMetadataValue | None:
    """A small PNG, shown inline, or nothing. It lives in the event log, so keep it under about 100
    kB.
    """
    if not png:
        return None
    return dg.MetadataValue.md(
        f"![{title}](data:image/png;base64,{base64.b64encode(png).decode()})"
    )


def code(text: str) -> str:
    """A text from outside on one line of Markdown, which shows it and never obeys it.

    It is a code span between more backticks than it has in a row. Backslashes would not do: the
    UI makes links of what looks like an address after they are gone.
    """
    line = re.sub(r"[\r\n]+", " ", text)
    if not line:
        return ""
    fence = "`" * (_longest_run(line) + 1)
    space = " " if line[0] in " `" or line[-1] in " `" else ""
    return f"{fence}{space}{line}{space}{fence}"


def description(text: str) -> str:
    """What a check says: as it is, or as code where part of it might become a picture or a link."""
    return code(text) if _OBEYED.search(text) else text


def code_block(text: str) -> dg.MarkdownMetadataValue:
    """Lines in columns, as a terminal shows them."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return dg.MetadataValue.md(f"{fence}\n{text}\n{fence}")


def small_picture(png: bytes, caption: str) -> dg.MarkdownMetadataValue:
    """A caption, and a picture that is small enough for the UI to show it without a click. Where it
    is not, the caption alone.

    Args:
        caption: Markdown.
    """
    image = f"![](data:image/png;base64,{base64.b64encode(png).decode()})"
    whole = f"{caption}\n\n{image}"
    return dg.MetadataValue.md(whole if len(whole) <= INLINE else caption)


def product_links(names: Sequence[str], most: int = 6) -> dg.MarkdownMetadataValue | None:
    """Products as links to their pages in the UI, or nothing. Names that are no product, of files
    and repositories, stand there without a link.
    """
    if not names:
        return None
    shown = [_product_link(name) for name in names[:most]]
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return dg.MetadataValue.md(" · ".join(shown) + more)


def _product_link(name: str) -> str:
    """A product's name as Markdown, with a link to its page in the UI."""
    asset, _, partition = name.partition("[")
    if not re.fullmatch(r"[a-z0-9_]+", asset) or (partition and not partition.endswith("]")):
        return code(name)
    query = f"?{urlencode({'partition': partition[:-1]})}" if partition else ""
    return f"[{code(name)}](/assets/{asset}{query})"


def samples(examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Example rows as a person reads them: one of them turn by turn, and all of them as a table."""
    if not examples:
        return {}
    before, *told = re.split(r"(?m)^(human|gpt): ", examples[0]["conversation"][:INLINE])
    turns = [("", before), *zip(told[::2], told[1::2], strict=True)]
    shown = [{"who": who, "says": says.strip()} for who, says in turns if who or says]
    others = [
        {name: row[name] for name in ("id", *sorted(row)) if name != "conversation"}
        for row in examples
    ]
    return {"one sample": table(shown), "examples": table(others)}


def drops(counts: Mapping[str, int]) -> dg.TableMetadataValue:
    """What was lost and why: the counts that are called `dropped: <reason>`."""
    lost = {
        what.partition(": ")[2]: count
        for what, count in counts.items()
        if what.startswith("dropped: ")
    }
    return table(
        [
            {"reason": reason, "rows": count}
            for reason, count in sorted(lost.items(), key=lambda kv: -kv[1])
        ]
    )


def column_schema(schema: pa.Schema, descriptions: Mapping[str, str]) -> dict[str, dg.TableSchema]:
    """The `dagster/column_schema` entry of a Parquet file.

    Args:
        descriptions: what each column holds, for a person.

    Raises:
        ValueError: a column has no description, or a described one is not there.
    """
    if unknown := set(descriptions) ^ set(schema.names):
        raise ValueError(
            f"columns that are either not told or not there: {', '.join(sorted(unknown))}"
        )
    columns = [
        dg.TableColumn(field.name, str(field.type), descriptions[field.name]) for field in schema
    ]
    return {"dagster/column_schema": dg.TableSchema(columns)}


def _longest_run(text: str) -> int:
    """Of backticks."""
    return max(map(len, re.findall("`+", text)), default=0)


def _cell(value: Any) -> str | int | float | bool:
    if value is None:
        return ""
    return value if isinstance(value, str | int | float | bool) else str(value)


def _column_type(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    kinds = {type(row.get(name)) for row in rows}
    if kinds <= {int}:
        return "int"
    if kinds <= {int, float}:
        return "float"
    return "string"
