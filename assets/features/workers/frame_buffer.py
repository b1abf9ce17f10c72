"""The frames on their way from decoders to encoders: memory that all processes share.

The memory is anonymous (a memfd). It is freed when the last process ends, however that process
ended, and no limit of /dev/shm applies. `multiprocessing.shared_memory` has a name in /dev/shm
instead, which a killed run may leave behind and any process of the same user can open.

Which process may use which slot is decided by the coordinator alone. Nothing in the shared memory
decides anything, so a decoder that is killed while it writes can spoil only its own slots.
"""

from __future__ import annotations

import mmap
import os

import numpy as np


class FrameBuffer:
    """Slots for pictures, uint8 [S, S, 3] each.

    Args:
        descriptor: the memfd. This object closes it.
        side: S.
        slots: how many.

    Attributes:
        pictures: all slots, uint8 [slots, S, S, 3].
    """

    def __init__(self, descriptor: int, side: int, slots: int) -> None:
        self.descriptor, self.side, self.slots = descriptor, side, slots
        self.memory = mmap.mmap(descriptor, self.slot_bytes(side) * slots)
        self.pictures: np.ndarray = np.ndarray((slots, side, side, 3), np.uint8, self.memory)

    @staticmethod
    def slot_bytes(side: int) -> int:
        """Bytes of one slot."""
        return side * side * 3

    @staticmethod
    def create(side: int, slots: int) -> FrameBuffer:
        """A new buffer, all zeros."""
        descriptor = os.memfd_create("hourllava-frames", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, FrameBuffer.slot_bytes(side) * slots)
        return FrameBuffer(descriptor, side, slots)

    def close(self) -> None:
        """Give this process's share of the memory back. Nobody may hold on to `pictures`."""
        del self.pictures
        self.memory.close()
        os.close(self.descriptor)
