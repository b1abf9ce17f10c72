"""What the coordinator receives in one turn, in whatever order it receives it."""

from __future__ import annotations

import os
import selectors
import types
from pathlib import Path

from assets.annotations.catalogue import PresentVideo
from assets.deployment.settings import Limits
from assets.features.coordinator import Coordinator
from assets.features.decoder_pool import PYAV, DecoderPool
from assets.features.encoder_pool import EncoderPool
from assets.features.jobs import VideoJob
from assets.features.video_queue import VideoQueue
from assets.features.workers.connection import Connection
from assets.features.workers.frame_buffer import FrameBuffer
from assets.features.workers.processes import DecoderProcess
from tests.assets.features.conftest import FOLDER, options
from training.formats.storage import Storage


class ForkServerFirst(selectors.DefaultSelector):
    """Tells of the fork server before it tells of decoders; the system promises no order."""

    def select(self, timeout=None):
        return sorted(
            super().select(timeout), key=lambda event: isinstance(event[0].data, DecoderProcess)
        )


def test_a_decoder_whose_exit_is_received_before_its_last_messages_loses_none_of_them(tmp_path):
    storage = Storage(str(tmp_path))
    coordinator = Coordinator(
        storage, FOLDER, options(), tmp_path, {}, [PYAV], print, lambda frames: None
    )
    connection, server_end = Connection.pair()
    ours, decoder_end = Connection.pair()
    server = types.SimpleNamespace(connection=connection, receive=connection.receive)
    selector, buffer = ForkServerFirst(), FrameBuffer.create(4, 8)
    coordinator.fork_server, coordinator.buffer = server, buffer
    coordinator.encoders = EncoderPool(tmp_path, options())
    coordinator.decoders = DecoderPool(server, buffer, selector, Limits())
    coordinator._selector, coordinator._queue = selector, VideoQueue(storage, [])
    video = PresentVideo("panda/a", 10.0, "0" * 64, "a.mp4", damaged=False)
    coordinator._jobs[1] = VideoJob(1, video, Path("a.mp4"))
    decoder = DecoderProcess(7, PYAV, ours, os.memfd_create("stderr"), slots={2, 3}, job=1)
    coordinator.decoders.decoders[7], coordinator.decoders.free_slots = decoder, [0, 1]
    selector.register(connection, selectors.EVENT_READ, server)
    selector.register(ours, selectors.EVENT_READ, decoder)

    decoder_end.send("fail", 1, "broken", "no pictures in it")
    decoder_end.close()
    server_end.send("exit", 7, 0)
    coordinator._turn()

    outcomes = [(outcome.video, outcome.reason) for outcome in coordinator.outcomes]
    assert outcomes == [(video, "broken")]
    assert coordinator.decoders.decoders == {}
    assert sorted(coordinator.decoders.free_slots) == [0, 1, 2, 3]
    assert [key.data for key in selector.get_map().values()] == [server]
