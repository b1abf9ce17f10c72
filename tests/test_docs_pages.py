"""Pages that say how to use the project, against the code that they speak of."""

import re
from pathlib import Path

import pytest

from assets.evaluation.questions import read_questions
from docs.costs import CARDS, DOES_NOT_FIT, TUNED, hours_of_card
from model.config import PRESETS
from model.memory import video_token_counts
from tests.pages import REPOSITORY, names_in, page, pages
from training.rates import CARDS as KNOWN_CARDS
from training.rates import RATES

ROOMS = ("pipeline", "assets", "training", "model")
# Messages of other programs, and states that are no message.
OTHERS = {
    "hourllava: command not found", "address already in use", "CUDA out of memory",
    "does not recognize this architecture", "damaged/",
}  # fmt: skip


def sources() -> str:
    """The code, with the halves of a text that stands on several lines joined."""
    files = (file for room in ROOMS for file in (REPOSITORY / room).rglob("*.py"))
    text = "\n".join(file.read_text() for file in files)
    return re.sub(r'"\s*\n\s*f?"', "", text)


def test_messages_of_the_troubleshooting_page_are_those_of_the_code():
    code = sources()
    symptoms = [
        name
        for table in page("docs/troubleshooting.md").tables()
        for row in table[1:]
        for name in names_in(row[0])
    ]
    assert len(symptoms) > 40
    assert [name for name in symptoms if name not in code and name not in OTHERS] == []
    assert set(symptoms) >= OTHERS


def test_the_examples_of_evaluation_questions_are_read(tmp_path: Path):
    blocks = page("docs/evaluation.md").blocks("json")
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(block.text for block in blocks))
    assert [one.form for one in read_questions(file)] == ["options", "candidates", "open"]


def test_the_half_widths_of_a_score_are_those_of_a_share_near_one_half():
    (table,) = [
        t for t in page("docs/evaluation.md").tables() if t[0] == ["questions", "plus or minus"]
    ]
    for number, told in table[1:]:
        asked = int(number.replace(",", ""))
        points = 100 * 1.96 * (0.25 / asked) ** 0.5
        assert float(told.removesuffix(" points")) == pytest.approx(points, rel=0.03)


def test_hours_by_card_are_those_of_the_estimate():
    """Cells of either kind; the whole table takes a minute (`python -m docs.costs --write`)."""
    (table,) = [t for t in page("docs/costs.md").tables() if t[0][0] == "one card"]
    assert table[0][1:] == list(TUNED)
    assert [row[0] for row in table[1:]] == list(CARDS)
    cells = {row[0]: dict(zip(TUNED, row[1:], strict=True)) for row in table[1:]}
    for card, tuned in (("RTX 4090", "3B, adapters"), ("H200", "7B, all of stage 3")):
        hours = hours_of_card(card, *TUNED[tuned])
        assert cells[card][tuned] == f"{hours:.1f} h"
    assert hours_of_card("RTX 4090", *TUNED["7B, adapters"]) is None
    assert cells["RTX 4090"]["7B, adapters"] == DOES_NOT_FIT


def test_every_word_of_the_glossary_that_pages_link_to_is_explained():
    words = page("docs/glossary.md").section("Glossary").headings()
    assert len(words) == len(set(words))
    linked = {
        link.partition("#")[2]
        for shown in pages()
        for link in shown.links()
        if "glossary.md#" in link
    }
    assert {"features", "part", "variant", "query", "stage"} <= linked
    for word in ("Part", "Landing", "Variant", "Product", "MemAug", "Forgetting", "Memory"):
        assert word in words


@pytest.mark.parametrize("name", ["docs/performance.md", "docs/memory.md", "docs/comparison.md"])
def test_utilisation_is_told_by_the_measured_rate_and_by_the_datasheets(name: str):
    """In columns of MFU and beside the word: the second share is the first, by the datasheet."""
    by = RATES["rate of a matrix product, H200"].value / KNOWN_CARDS["H200"].teraflops
    cells = re.findall(r"MFU [\d.]+ / [\d.]+|[\d.]+ / [\d.]+ % MFU", page(name).text)
    for table in page(name).tables():
        columns = [
            n for n, head in enumerate(table[0]) if head.startswith("MFU") and "by step" not in head
        ]
        cells += [row[column] for row in table[1:] for column in columns]
    told = [cell for cell in cells if re.search(r"\d", cell) and not cell.startswith("MFU by")]
    assert len(told) >= 6
    for cell in told:
        numbers = re.findall(r"\d+(?:\.\d+)?", cell)
        assert len(numbers) == 2, cell
        width = len(numbers[1].partition(".")[2])
        assert float(numbers[1]) == pytest.approx(float(numbers[0]) * by, abs=0.9 * 10**-width)


def test_figures_that_pages_repeat_stand_in_the_measurements():
    performance, memory = page("docs/performance.md").text, page("docs/memory.md").text
    for figure in ("0.88 s", "1.83 s", "1.64 s", "2.58 s"):
        assert figure in page("README.md").text
        assert figure in performance
    for figure in ("1.051", "91.4", "43.5 GiB", "34.9 GiB", "68.4 GiB", "49.6 GiB"):
        assert figure in page("docs/comparison.md").text
        assert figure in performance
    for figure in ("0.80", "46.0", "36.7"):
        assert figure in page("docs/comparison.md").text
        assert figure in memory
    assert "takes 11 s to read" in page("docs/serving.md").text
    assert "until a question can be asked | **10.7 s** |" in performance
    assert "4.213" in page("docs/comparison.md").text
    assert "4.213" in performance


def test_the_sizes_in_the_picture_of_the_model_are_those_of_the_code():
    """3B and an hour: the memory, what forgetting keeps of it, and the file of its features."""
    config = PRESETS["3b"]
    frames = 3600
    memory, queries = video_token_counts(frames, config)
    file = frames * config.memory.frame_tokens * config.vision.hidden_size * 2
    told = page("docs/model.md").text
    assert f"= {memory:,} tokens" in told
    assert f"= {queries:,} tokens" in told
    assert f"{file / 1e9:.2f} GB" in told
    assert f"{config.vision.patches_per_side} x {config.vision.patches_per_side} tokens" in told
    assert f"{config.llm.hidden_size:,} wide, {config.llm.num_layers} layers" in told
    words = page("docs/glossary.md").text
    assert f"{queries:,} for an hour" in words
    assert f"An hour is {memory:,} tokens" in words
