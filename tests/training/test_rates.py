"""Cards by the names that people and drivers give them."""

import pytest

from training.rates import CARDS, card_called, card_of


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("rtx 4090", "RTX 4090"),
        ("4090", "RTX 4090"),
        ("h200", "H200"),
    ],
)
def test_a_card_is_known_by_the_names_of_drivers_and_people(name, card):
    assert card_of(name) == (CARDS[card], False)


@pytest.mark.parametrize(
    "name",
    ["A100", "H100", "Tesla T4", "NVIDIA GeForce RTX 4090 Laptop GPU", "RTX 4090 D", "", "-"],
)
def test_a_name_that_does_not_decide_is_refused_with_the_known_ones(name):
    assert card_called(name) is None
    with pytest.raises(ValueError, match=r"known: H200 .*RTX 3090"):
        card_of(name)


def test_of_a_memory_the_slowest_known_card_is_taken():
    for text in ("24", "24GiB", " 24 gb"):
        card, by_memory = card_of(text)
        assert by_memory
        assert card.teraflops == min(c.teraflops for c in CARDS.values() if c.gib == 24)
    with pytest.raises(ValueError, match="no known card has 25 GiB; known: H200"):
        card_of("25GiB")
