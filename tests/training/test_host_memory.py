"""What of a host's memory is free, by files as the kernel writes them."""

from __future__ import annotations

import pytest

from training import host_memory
from training.host_memory import free_memory_of_host

GIB = 2**30


@pytest.fixture
def host(tmp_path, monkeypatch):
    """Writes the files; sizes in GiB."""
    monkeypatch.setattr(host_memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(host_memory, "CONTROL_GROUP", tmp_path)

    def written(available: int, limit: int | str | None = None, used: int = 0, **held: int) -> None:
        (tmp_path / "meminfo").write_text(
            f"MemTotal:       {2000 * GIB // 1024} kB\nHugePages_Total:       0\n"
            f"MemAvailable:   {available * GIB // 1024} kB\n"
        )
        if limit is not None:
            bytes_ = limit * GIB if isinstance(limit, int) else limit
            (tmp_path / "memory.max").write_text(f"{bytes_}\n")
            (tmp_path / "memory.current").write_text(f"{used * GIB}\n")
            lines = [f"{name} {size * GIB}" for name, size in held.items()]
            (tmp_path / "memory.stat").write_text("\n".join(["pgfault 12", *lines]) + "\n")

    return written


@pytest.mark.parametrize("limit", [None, "max"])
def test_without_a_limit_it_is_what_the_kernel_calls_available(host, limit):
    host(available=100, limit=limit, used=900)
    assert free_memory_of_host() == 100 * GIB


def test_pages_of_files_that_were_read_before_are_free_in_a_container(host):
    host(available=1000, limit=200, used=197, anon=20, inactive_file=177)
    assert free_memory_of_host() == 180 * GIB


def test_what_was_used_lately_is_half_free_and_files_in_memory_are_not(host):
    held = {"anon": 60, "shmem": 60, "file": 120, "inactive_file": 20, "active_file": 40}
    host(available=1000, limit=200, used=190, slab_reclaimable=10, **held)
    assert free_memory_of_host() == (10 + 20 + 25) * GIB


def test_a_container_has_no_more_than_the_machine(host):
    host(available=50, limit=200, used=190, inactive_file=150)
    assert free_memory_of_host() == 50 * GIB


def test_nothing_is_said_where_the_kernel_says_nothing(host):
    assert free_memory_of_host() is None
