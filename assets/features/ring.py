"""The frames on their way from decoders to the encoder: slots of one size in memory that all
processes share.

The memory is anonymous (memfd): it is gone when the last process is, however that one died, and no
/dev/shm limit applies. Which slot is whose is the coordinator's bookkeeping alone; nothing in the
shared memory decides anything, so a decoder that is killed in mid-write can spoil its own slots
only.
"""

from __future__ import annotations

import mmap
import os

import numpy as np


class Ring:
    """Shared slots for uint8 pictures [S, S, 3].

    Args:
        descriptor: the memfd; owned by this object.
        side: S.
        slots: how many.
    """

    def __init__(self, descriptor: int, side: int, slots: int) -> None:
        self.descriptor, self.side, self.slots = descriptor, side, slots
        self.memory = mmap.mmap(descriptor, self.slot_bytes(side) * slots)
        self.pictures: np.ndarray = np.ndarray((slots, side, side, 3), np.uint8, self.memory)

    @staticmethod
    def slot_bytes(side: int) -> int:
        return side * side * 3

    @staticmethod
    def create(side: int, slots: int) -> Ring:
        descriptor = os.memfd_create("hourllava-frames", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, Ring.slot_bytes(side) * slots)
        return Ring(descriptor, side, slots)

    def close(self) -> None:
        del self.pictures
        self.memory.close()
        os.close(self.descriptor)
