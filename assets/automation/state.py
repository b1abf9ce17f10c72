"""What is due and why, and what it waits for: one answer for automation, pages, command line.

The register of lineage records is the truth: a product is out of date when the versions that it was
made from are not those of today. Events do not count. So what happened before the first look is
seen, what a person made by hand is not made again, and neither is what `hourllava recover` brought
back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product as combinations
from typing import Any

from assets.records.lineage import Lineage, product, split_product
from assets.records.sentences import listed
from training.formats.hashing import data_version

# Partitions of this dimension come from new data. All others are as many as the settings, or the
# recipe, say.
PART = "part"
# The version of what is watched and did not answer the very first look.
NOT_REACHABLE = "not reachable"
SHOWN = 3  # inputs that a sentence names; the rest is counted


@dataclass(frozen=True, slots=True)
class Node:
    """An asset as automation sees it.

    Attributes:
        parents: names of the assets that it is made from.
        dimensions: of its partitions, in the order of its keys (`part`, `variant`).
        made: whether a step makes it; otherwise it is looked at from outside.
        fills: whether automation makes it where it was never made.
        keys: dimension -> its partition keys, where the settings say which.
        reads: parent -> own partition key -> the parent's keys that it is made from, where that is
            written out.
    """

    parents: tuple[str, ...] = ()
    dimensions: tuple[str, ...] = ()
    made: bool = True
    fills: bool = False
    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    reads: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)


@dataclass(frozen=True)
class State:
    """What is on record at one moment.

    Attributes:
        graph: name -> asset.
        records: product -> its lineage record.
        keys: dimension -> its partition keys today; of `part`, only parts that are worked on.
        outside: name -> version of what is watched and has no record; without those that were never
            reached.
        settings: product, or asset -> what its record's `config` would say today, of settings that
            decide the product; nothing is as good as not said.
    """

    graph: Mapping[str, Node]
    records: Mapping[str, Lineage]
    keys: Mapping[str, Sequence[str]]
    outside: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def products(self, asset: str) -> Iterator[str]:
        """The products of an asset that there are to be today."""
        for keys in combinations(*(self._keys(asset, d) for d in self.graph[asset].dimensions)):
            yield product(asset, "|".join(keys) or None)

    def _keys(self, asset: str, dimension: str) -> Sequence[str]:
        """The partition keys of an asset in one of its dimensions."""
        return self.graph[asset].keys.get(dimension, self.keys[dimension])

    def is_missing(self, name: str) -> bool:
        """Whether a product was never made."""
        return name not in self.records

    def is_due(self, name: str) -> bool:
        """Whether a product is to be made: out of date, or missing where automation fills it in."""
        if self.is_missing(name):
            return self.graph[split_product(name)[0]].fills
        return bool(self.stale_reasons(name))

    def stale_reasons(self, name: str) -> list[str]:
        """Why a product is out of date, a clause each; none where it is not, or is missing."""
        record = self.records.get(name)
        if record is None:
            return []
        wanted = self.wanted(name)
        changed = [
            f"{other} (read as {_short(record.inputs[other])}, now {_short(version)})"
            for other in wanted
            if other in record.inputs
            and (version := self.version(other)) is not None
            and version != record.inputs[other]
        ]
        new = [
            other
            for other in wanted
            if other not in record.inputs
            and (self.graph[split_product(other)[0]].made or self.version(other) is not None)
        ]
        gone = [other for other in record.inputs if self._left(name, other, wanted)]
        reset = [
            f"{key} (made with {record.config.get(key)}, now {value})"
            for key, value in self.settings.get(name, self.settings.get(record.asset, {})).items()
            if (value or None) != (record.config.get(key) or None)
        ]
        reasons = (
            ("changed", changed),
            ("new", new),
            ("no longer there", gone),
            ("set otherwise", reset),
        )
        return [f"{what}: {listed(names, SHOWN)}" for what, names in reasons if names]

    def holds(self, name: str) -> list[str]:
        """What a product waits for, each a clause that names the first cause; none where its inputs
        are there and passed their checks.
        """
        return [hold for other in self.wanted(name) if (hold := self._hold(other))]

    def inputs_digest(self, name: str) -> str:
        """Changes when an input of a product changes, comes, goes or is made again.

        Made again counts, because that may be how somebody has mended it.
        """
        return data_version(
            {
                other: (self.version(other), record.run_id if record else "")
                for other in self.wanted(name)
                for record in [self.records.get(other)]
            }
        )

    def version(self, name: str) -> str | None:
        """The version of a product today; None where it was never made or never reached."""
        record = self.records.get(name)
        return self.outside.get(name) if record is None else record.version

    def wanted(self, name: str) -> list[str]:
        """The products that a product would be made from today."""
        asset, partition = split_product(name)
        node, record = self.graph[asset], self.records.get(name)
        read = (
            {split_product(other)[0] for other in record.inputs}
            if record
            else self._parents_read.get(asset)
        )
        at = dict(zip(node.dimensions, (partition or "").split("|"), strict=False))
        found: list[str] = []
        for parent in node.parents:
            written = node.reads.get(parent)
            # A step may leave out an input by its settings: an encoder of the user's own in place
            # of the trained one. Of such an asset it has read nothing.
            sure = written is not None and record is None
            if not sure and read is not None and parent not in read and self.graph[parent].made:
                continue
            if written is None:
                found += self._partitions_of(parent, at, record)
            else:
                found += [product(parent, key) for key in written.get(partition or "", ())]
        return found

    def _partitions_of(
        self, parent: str, at: Mapping[str, str], record: Lineage | None
    ) -> Iterator[str]:
        """The partitions of a parent that agree with those of its child (`at`)."""
        dimensions = self.graph[parent].dimensions
        free = [dimension for dimension in dimensions if dimension not in at]
        if free and PART not in dimensions and record is not None:
            # Which of a fixed number of parts are read is the step's own choice.
            yield from (other for other in record.inputs if split_product(other)[0] == parent)
            return
        choices = [[at[d]] if d in at else self._keys(parent, d) for d in dimensions]
        for keys in combinations(*choices):
            yield product(parent, "|".join(keys) or None)

    def _left(self, name: str, other: str, wanted: Sequence[str]) -> bool:
        """Whether `other`, which a product was made from, is nothing to make it from any more."""
        parent, node = split_product(other)[0], self.graph[split_product(name)[0]]
        return (
            other not in wanted
            and parent in node.parents
            and (PART in self.graph[parent].dimensions or parent in node.reads)
        )

    @cached_property
    def _parents_read(self) -> dict[str, set[str]]:
        """Asset -> the assets that its products were made from, of assets with any product."""
        found: dict[str, set[str]] = {}
        for record in self.records.values():
            found.setdefault(record.asset, set()).update(split_product(i)[0] for i in record.inputs)
        return found

    def _hold(self, name: str) -> str | None:
        """Why nothing can be made from a product, or None."""
        if name not in self._known_holds:
            self._known_holds[name] = self._find_hold(name)
        return self._known_holds[name]

    def _find_hold(self, name: str) -> str | None:
        record = self.records.get(name)
        if record is not None:
            return f"{name} did not pass its checks ({record.faults})" if record.failed else None
        if not self.graph[split_product(name)[0]].made:
            return None
        cause = next((hold for other in self.wanted(name) if (hold := self._hold(other))), None)
        return f"{name} was not made yet" + (f", because {cause}" if cause else "")

    @cached_property
    def _known_holds(self) -> dict[str, str | None]:
        return {}


def _short(version: str) -> str:
    return version[:12]
