"""How a model may be asked: what has no meaning is refused by its name."""

import math
from dataclasses import replace

import pytest

from model.config import PRESETS, MemoryConfig, frame_step
from model.options import AskOptions


def test_every_whole_part_is_a_share():
    steps = [*range(1, 2000), 86_400]
    assert [frame_step(1 / step) for step in steps] == steps


def test_a_third_may_be_written_as_a_decimal_fraction():
    assert (frame_step(0.333), frame_step(0.3333), frame_step(0)) == (3, 3, 0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        *(
            ({"memory_scale": s}, "memory_scale is")
            for s in (0.4, 2, -1, math.nan, math.inf, 5e-324)
        ),
        ({"kept_frames": 0}, "kept_frames is 0"),
        ({"template_tokens": "some"}, "template_tokens is 'some'; known: hidden, seen"),
        ({"forgetting_seed": -1}, "forgetting_seed is -1"),
        ({"forgetting_seed": 2**63}, "forgetting_seed is"),
    ],
)
def test_what_has_no_meaning_is_refused_by_its_name(given, message):
    with pytest.raises(ValueError, match=message):
        AskOptions(**given)


def test_an_option_that_nothing_would_read_is_refused():
    options = AskOptions(memory_scale=0.5, kept_frames=3, forgetting_seed=0)
    assert options.given() == {"memory_scale": 0.5, "kept_frames": 3, "forgetting_seed": 0}
    options.check_visuals(video=True, images=False)
    with pytest.raises(ValueError, match="memory_scale, kept_frames: there is no video"):
        options.check_visuals(video=False, images=True)
    with pytest.raises(ValueError, match="template_tokens: there is neither a video nor an image"):
        AskOptions(template_tokens="seen").check_visuals(video=False, images=False)
    AskOptions().check_visuals(video=False, images=False)


def test_where_memaug_looks_can_be_asked_where_it_looks_whole_frames_up():
    config = PRESETS["tiny"]
    without = replace(config, memory=MemoryConfig(scale=0.0))
    assert AskOptions().looks_at_frames(config)
    assert not AskOptions(memory_scale=0).looks_at_frames(config)
    assert not AskOptions().looks_at_frames(without)
    assert AskOptions(memory_scale=0.5).looks_at_frames(without)
    assert not AskOptions().looks_at_frames(replace(config, memaug_depth=0))
