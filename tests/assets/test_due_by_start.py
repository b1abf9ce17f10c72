"""What is out of date where variants start differently, and where settings changed."""

from __future__ import annotations

from assets.automation.state import Node, State
from assets.records.lineage import Lineage

VARIANTS = ("full", "lectures")
GRAPH = {
    "base_model": Node(dimensions=("variant",), keys={"variant": VARIANTS}),
    "stage2": Node(("base_model",), ("variant",), keys={"variant": ("full",)}),
    "stage3": Node(
        ("base_model", "stage2"),
        ("variant",),
        keys={"variant": VARIANTS},
        reads={"base_model": {"lectures": ("lectures",)}, "stage2": {"full": ("full",)}},
    ),
}


def state(*records: Lineage, **settings: dict[str, object]) -> State:
    names = {record.product: record for record in records}
    return State(GRAPH, names, {"variant": VARIANTS}, settings=settings)


def made(name: str, *inputs: str, **config: object) -> Lineage:
    return Lineage(name, "1", inputs=dict.fromkeys(inputs, "1"), config=config)


def test_an_asset_has_the_partitions_of_those_that_train_it():
    assert list(state().products("stage2")) == ["stage2[full]"]
    assert list(state().products("stage3")) == ["stage3[full]", "stage3[lectures]"]


def test_a_stage_waits_for_its_own_start_and_for_nothing_before_it():
    assert state().holds("stage3[lectures]") == ["base_model[lectures] was not made yet"]
    assert state(made("base_model[lectures]")).holds("stage3[lectures]") == []
    # What another variant was made from says nothing about this one.
    other = made("stage3[full]", "stage2[full]")
    assert state(other).holds("stage3[lectures]") == ["base_model[lectures] was not made yet"]


def test_a_stage_that_started_elsewhere_before_is_out_of_date():
    now = made("stage3[lectures]", "base_model[lectures]")
    assert state(made("base_model[lectures]"), now).stale_reasons("stage3[lectures]") == []
    before = made("stage3[full]", "base_model[full]")
    found = state(made("base_model[full]"), made("stage2[full]"), before)
    assert found.stale_reasons("stage3[full]") == ["no longer there: base_model[full]"]


def test_a_product_of_other_settings_is_out_of_date_and_nothing_said_is_the_default():
    start = {"folder": "a", "stage": 3}
    chosen = {"base_model[lectures]": {"start": start}}
    base = made("base_model[lectures]", start=start)
    assert state(base, **chosen).stale_reasons("base_model[lectures]") == []
    (reason,) = state(made("base_model[lectures]"), **chosen).stale_reasons("base_model[lectures]")
    assert reason == f"set otherwise: start (made with None, now {start})"
    default = {"base_model[lectures]": {"start": None}}
    assert (
        state(made("base_model[lectures]"), **default).stale_reasons("base_model[lectures]") == []
    )
