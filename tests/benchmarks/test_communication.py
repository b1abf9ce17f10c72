"""What the scaling benchmark reads out of a profile."""

import pytest

from benchmarks.communication import shares, union


def kernel(name: str, start: float, seconds: float) -> dict:
    return {"cat": "kernel", "name": name, "ts": start, "dur": seconds}


def test_time_in_collectives_counts_once_and_is_exposed_where_nothing_else_ran():
    events = [
        kernel("gemm", 0, 40),
        kernel("ncclDevKernel_AllGather_RING_LL", 30, 30),  # 10 hidden, 20 alone
        kernel("ncclDevKernel_ReduceScatter", 50, 10),  # at the same time as the one before
        kernel("gemm", 60, 40),
    ]
    assert shares(events) == pytest.approx({"communication": 0.3, "exposed": 0.2})


def test_annotations_around_kernels_are_not_work():
    events = [
        {"cat": "gpu_user_annotation", "name": "FSDP::all_gather", "ts": 0, "dur": 100},
        kernel("ncclDevKernel_AllGather", 0, 50),
        kernel("gemm", 50, 50),
        {"cat": "kernel", "name": "an event without an end", "ts": 3},
    ]
    assert shares(events) == pytest.approx({"communication": 0.5, "exposed": 0.5})


def test_without_kernels_there_are_no_shares():
    assert shares([]) == {}


def test_a_union_covers_what_its_parts_cover():
    assert union([(5, 6), (0, 2), (1, 3), (3, 4)]) == [(0, 4), (5, 6)]
