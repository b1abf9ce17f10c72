"""docs/estimate.md is what benchmarks/estimate.py prints, and its inputs are those that were
measured.
"""

import pytest

from benchmarks import estimate
from model.config import PRESETS
from tests.pages import page
from training.flops import flops, video_sizes
from training.rates import RATES
from training.recipes import recipe

# Measured inputs as docs/performance.md writes them.
MEASURED = {
    "download": "| 14.4 | 71 |",
    "features, one H200 and 16 cores": "| 14 on the CPU | 626 |",
    "CPU time of one sampled second of video": "| 22.1 ms |",
    "grouping of all rows": "31.3 s / 30.8 s",
    "rate of a matrix product, H200": "790 TFLOP/s",
    "MFU of stage 1, 3B": "| 54.3 / 43.3 % |",
    "MFU of stage 2, 3B": "| 45.6 / 36.4 % |",
    "MFU of stage 3, 3B": "| 52.5 / 42.0 % |",
    "MFU of stage 3, short videos, 3B": "| 42.1 / 33.6 % |",
    "MFU of stage 3, kept short videos, 3B": "| 53.9 / 43.0 % |",
    "MFU of stage 3, 7B": "| **60.5 / 48.3 %** |",
    "vision encoder alone, H200": "730 frames a second in either run",
    "reading an hour, 3B, H200": "(prefill 0.28 s, 6.6 ms a token)",
    "a written token, 3B, H200": "(prefill 0.28 s, 6.6 ms a token)",
}


def test_the_page_is_what_the_script_prints():
    text = page("docs/estimate.md").text
    between = text.partition(estimate.BEGIN)[2].partition(estimate.END)[0]
    assert between.strip() == estimate.printed(), "python -m benchmarks.estimate --write"


def test_measured_inputs_stand_in_the_measurements():
    performance = page("docs/performance.md").text
    assert set(RATES) == set(MEASURED)
    for name, text in MEASURED.items():
        assert text in performance, name
        value = RATES[name].value
        assert f"{value:g}" in text or f"{100 * value:g}" in text, name


def test_inputs_that_are_called_measured_are_measured_rates():
    found = {name: row for name, row in estimate.INPUTS.items() if row[2] == estimate.MEASURED}
    assert found
    assert all(row[0] == RATES[name].value for name, row in found.items())


@pytest.mark.parametrize(
    ("variant", "rate", "mfu"), [("3b", 1.051, 0.570), ("7b", 0.92 / 2, 0.501)]
)
def test_the_counted_operations_give_the_measured_utilisation(variant, rate, mfu):
    """Hour-long samples a second of one GPU, times their operations, is the MFU that the run itself
    reported.
    """
    config = PRESETS[variant]
    work = flops(video_sizes(3600, 400, 256, config), config, recipe(variant, 3).rates)
    assert rate * work / (estimate.of("rate of a matrix product, H200") * 1e12) == pytest.approx(
        mfu, rel=0.03
    )


def test_rows_are_counted_by_the_last_number_of_a_name():
    from assets.collections.mixtures import read_mixture

    rows = {
        entry.annotation: estimate.rows_of(entry)
        for entry in read_mixture()
        if entry.kind == "llavavideo_si"
    }
    assert rows["llava_next_fit_mix_filtered_text_wild_738590.json"] == 738_590 // 2
    assert rows["sharegpt4v-coco-50k.json"] == 50_000
    assert rows["sharegpt4v-knowledge-2k.json"] == 2_000
    assert rows["tqa_llava_format_27307.json"] == 1_365
    assert rows["sharegpt4o_dataset.jsonl"] == 100_000


def test_each_part_of_a_kind_is_read_once_by_stages_two_and_three_together():
    """They share nothing and leave nothing out, so their samples are all there are, stage 1's kind
    aside.
    """
    totals = estimate.samples_of_kinds()
    read = dict.fromkeys(totals, 0.0)
    for stage in (2, 3):
        for kind, count in estimate.samples_of_stage(stage).items():
            read[kind] += count
    assert {kind: round(count) for kind, count in read.items() if count} == {
        kind: count for kind, count in totals.items() if kind != "llava_ov_si_onlyimg"
    }


def test_the_readme_states_the_estimates_figures():
    (table,) = [
        table
        for table in page("README.md").section("What it needs").tables()
        if table[0][1] == "3B"
    ]
    text = "\n".join(" | ".join(row) for row in table)
    for number, variant in enumerate(("3b", "7b"), start=1):
        cells = " | ".join(row[number] for row in table)
        hours = sum(estimate.gpu_hours(variant, stage)[1] for stage in (1, 2, 3))
        assert f"{hours:,.0f} H200-hours: {hours / 8:.0f} h on 8" in cells
        assert f"{3 * 12 * _parameters(variant) / 1e9:.0f} GB" in cells
    assert f"| {estimate.video_bytes() / 1e12:.1f} TB |" in text
    feature_bytes = estimate.of("hours of long video") * estimate.feature_bytes_per_hour("3b")
    assert f"{feature_bytes / 1e12:.1f} TB, 15 h" in text
    assert (
        round(estimate.of("hours of long video") / estimate.of("features, one H200 and 16 cores"))
        == 15
    )


def _parameters(variant: str) -> int:
    count = estimate.parameters(PRESETS[variant])
    return sum(count[name] for name in estimate.MODULES)
