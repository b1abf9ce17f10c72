"""Tables, pictures and column descriptions, as the Dagster UI shows them."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import dagster as dg

if TYPE_CHECKING:
    import pyarrow as pa

INLINE = 900  # characters of Markdown that the UI shows without a click


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


def plain(text: str) -> str:
    """A text from outside, so that Markdown shows it and never obeys it."""
    one_line = html.escape(text.replace("\n", " "), quote=False)
    return re.sub(r"([\\`*_{}\[\]()#+\-.!|~:@])", r"\\\1", one_line)


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
    shown = [product_link(name) for name in names[:most]]
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return dg.MetadataValue.md(" · ".join(shown) + more)


def product_link(name: str) -> str:
    """A product's name as Markdown, with a link to its page in the UI."""
    asset, _, partition = name.partition("[")
    if not re.fullmatch(r"[a-z0-9_]+", asset) or (partition and not partition.endswith("]")):
        return plain(name)
    query = f"?{urlencode({'partition': partition[:-1]})}" if partition else ""
    return f"[{plain(name)}](/assets/{asset}{query})"


def samples(examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Example rows as a person reads them: one of them turn by turn, and all of them as a table.

    Dagster shows Markdown at once where it is shorter than a thousand characters, else behind a
    click.
    """
    if not examples:
        return {}
    turns = re.sub(
        r"(?m)^(human|gpt)\\: ",
        r"\n**\1:** ",
        "\n".join(map(plain, examples[0]["conversation"].splitlines())),
    )
    others = [
        {name: row[name] for name in ("id", *sorted(row)) if name != "conversation"}
        for row in examples
    ]
    return {"one sample": dg.MetadataValue.md(turns.strip()[:INLINE]), "examples": table(others)}


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
