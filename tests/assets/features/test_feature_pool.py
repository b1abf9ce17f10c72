"""What the coordinator hears in one turn, in whatever order it hears it."""

from __future__ import annotations

import os
import selectors
import types
from pathlib import Path

from assets.deployment.settings import Limits
from assets.features.channel import Channel
from assets.features.decoders import PYAV, Decoders
from assets.features.jobs import Job, Video
from assets.features.pool import Pool
from assets.features.processes import Worker
from assets.features.ring import Ring
from tests.assets.features.conftest import options
from training.formats.storage import Storage


class NurseryFirst(selectors.DefaultSelector):
    """Tells of what the nursery says before it tells of decoders; the system's order is anyone's
    guess.
    """

    def select(self, timeout=None):
        return sorted(super().select(timeout), key=lambda event: isinstance(event[0].data, Worker))


def test_a_decoder_whose_exit_is_heard_before_its_last_words_loses_none_of_them(tmp_path):
    pool = Pool(
        Storage(str(tmp_path)), "tiny", options(), tmp_path, {}, [PYAV], print, lambda frames: None
    )
    nursery, nursery_end = Channel.pair()
    ours, worker_end = Channel.pair()
    pool.nursery = types.SimpleNamespace(channel=nursery, error=lambda: "")
    pool._selector, pool.ring, pool.encoders = NurseryFirst(), Ring.create(4, 8), []
    pool.decoders = Decoders(pool.nursery, pool.ring, pool._selector, Limits())
    video = Video("panda/a", 10.0, "0" * 64, "a.mp4")
    pool._jobs[1] = Job(1, video, Path("a.mp4"))
    worker = Worker(7, PYAV, ours, os.memfd_create("stderr"), granted={2, 3}, job=1)
    pool.decoders.workers[7], pool.decoders.free = worker, [0, 1]
    pool._selector.register(nursery, selectors.EVENT_READ, pool.nursery)
    pool._selector.register(ours, selectors.EVENT_READ, worker)

    worker_end.send("fail", 1, "broken", "no pictures in it")
    worker_end.close()
    nursery_end.send("exit", 7, 0)
    pool._turn()

    assert [(outcome.video, outcome.reason) for outcome in pool.outcomes] == [(video, "broken")]
    assert pool.decoders.workers == {}
    assert sorted(pool.decoders.free) == [0, 1, 2, 3]
    assert [key.data for key in pool._selector.get_map().values()] == [pool.nursery]
