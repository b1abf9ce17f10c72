"""Walking lineage: up to the origins, and down to what was made."""

import pytest

from assets.records.lineage import Lineage
from assets.records.provenance import NotFoundError, Register
from training.formats.storage import Storage


@pytest.fixture
def storage(tmp_path):
    storage = Storage(str(tmp_path))
    for record in (
        Lineage("annotations", "a1", inputs={"jylins/videomarathon": "f" * 40}, counts={"rows": 7}),
        Lineage("videos[part0|panda]", "v1", inputs={"annotations": "a1"}),
        Lineage("videos[part1|panda]", "v9", inputs={"annotations": "a1"}),
        Lineage(
            "conversations[part0]", "c1", inputs={"annotations": "a1", "videos[part0|panda]": "v0"}
        ),
        Lineage(
            "stage3[tiny]",
            "s1",
            folder="checkpoints/tiny/stage3/k",
            inputs={"conversations[part0]": "c1"},
        ),
    ):
        record.write(storage)
    return storage


def test_a_checkpoint_leads_up_to_the_annotation_revision(storage):
    lines = "\n".join(Register(storage).up("stage3[tiny]"))
    assert "jylins/videomarathon @ " + "f" * 40 in lines
    assert "videos[part1|panda]" not in lines


def test_an_input_that_changed_since_is_pointed_out(storage):
    lines = list(Register(storage).up("conversations[part0]"))
    assert any("! videos[part0|panda] has changed since" in line and "v0" in line for line in lines)


def test_the_beginning_of_one_name_alone_is_enough_and_of_several_is_not(storage):
    register = Register(storage)
    assert register.find("stage3") == "stage3[tiny]"
    with pytest.raises(ValueError, match=r"may be videos\[part0\|panda\], videos\[part1\|panda\]"):
        register.find("videos")


def test_a_product_is_found_by_name_and_by_any_path_inside_of_it(storage):
    register = Register(storage)
    assert register.find("stage3[tiny]") == "stage3[tiny]"
    inside = storage.path("checkpoints/tiny/stage3/k/export/model.safetensors")
    assert register.find(inside) == "stage3[tiny]"
    assert register.find("checkpoints/tiny/stage3/k/export") == "stage3[tiny]"
    with pytest.raises(NotFoundError, match="annotations"):
        register.find("stage9[tiny]")
