"""A YAML file of settings, read so that nothing in it is lost without a word."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml


class _EachKeyOnce(yaml.SafeLoader):
    """YAML's own loader keeps the last of two equal keys: a section that was pasted a second time
    would undo the first one.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        lines: dict[Hashable, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if isinstance(key, Hashable) and lines.setdefault(key, line) != line:
                raise ValueError(f"line {line}: {key!r} stands in line {lines[key]} already")
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """What a YAML file holds.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it cannot be read, is not YAML, or has a key twice; says which file and where.
    """
    try:
        loader = _EachKeyOnce(path.read_text(encoding="utf-8-sig"))
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
