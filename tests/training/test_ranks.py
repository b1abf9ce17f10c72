"""Ranks that wait for each other, also longer than a collective may take."""

import pytest

from tests.training.script_ranks import outputs_of_two_ranks

# Only waiting within `together` has a short limit: on a busy machine one rank may be ready to join
# long before the other.
TOGETHER = """
import errno, time
from dataclasses import replace
from datetime import timedelta
import torch.distributed as dist
from training.ranks import join_ranks, together
ranks = join_ranks("cpu")
ranks = replace(ranks, host=dist.new_group(backend="gloo", timeout=timedelta(seconds=8)))
print(ranks.together(lambda: time.sleep(12) if ranks.first else "done"), flush=True)
def refused():
    if ranks.first:
        raise ValueError("the disk said no")
    time.sleep(60)
def broken():
    if ranks.first:
        raise OSError(errno.EIO, "Input/output error")
    time.sleep(60)
def hangs():
    time.sleep(60 if ranks.first else 0)
for work, limit in ((refused, 60), (broken, 60), (hangs, 1)):
    try:
        ranks.together(work, limit)
    except Exception as error:
        print(f"{type(error).__name__}: {error}", flush=True)
read = []
def slow():
    for _ in range(24):
        time.sleep(0.5)
        read.append(0)
together(slow, ranks.host, 8, lambda: len(read))
print(len(read), flush=True)
"""


@pytest.mark.slow
def test_ranks_wait_for_the_slowest_one_as_long_as_it_lives_and_learn_why_it_failed():
    said = outputs_of_two_ranks(TOGETHER)
    assert [first for first, *_ in said] == ["None", "done"]
    told = [
        "ValueError: the disk said no",
        "MachineFault: OSError: [Errno 5] Input/output error",
        "MachineFault: reading gave nothing for 1 s; does a file system or store hang?",
        "24",
    ]
    assert [rest for _, *rest in said] == [told, told]
