"""The vision tower of an encoding process: uint8 pictures in, pooled bfloat16 rows out, in batches
of one fixed size.

On a GPU the encoder computes in bfloat16, with pooling in float32; two batches are in flight. Each
is one CUDA graph, so that a busy host cannot hold up the GPU in the middle of a batch; compiling it
as well gains nothing (see docs/performance.md). On a CPU it computes in float32 on one thread.

Which other pictures share a batch does not change a picture's row; every start checks that. So a
file's bytes depend neither on the number of decoders nor on what was decoded at the same time.
"""

from __future__ import annotations

import queue
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from assets.features.workers.frame_buffer import FrameBuffer
from assets.features.workers.frame_encoder import arrange
from model.vision_encoders import VisionEncoder

ATTENTION = [  # best first
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
MLP_MULTIPLE = 128  # of the MLP's inner width on a GPU, which suits matrix products better
BATCHES = 3  # one being filled, one being computed, one whose rows are being written


@dataclass(slots=True)
class FrameBatch:
    """The buffers of one batch.

    Attributes:
        pixels_BSS3: pictures on the device, uint8.
        rows_BPC: what was computed, on the host, bfloat16.
        graph, computed_BPC: on a GPU, the computation as a CUDA graph, and where it leaves its rows
            there, until another batch is computed.
        started, done: on a GPU, events around the last computation.
    """

    pixels_BSS3: Tensor
    rows_BPC: Tensor
    graph: Any = None
    computed_BPC: Tensor | None = None
    started: Any = None
    done: Any = None


class VisionTower:
    """A vision encoder on one device, with the batches it computes.

    Args:
        encoder: in any float type.
        pooled_side: P = pooled_side**2 rows are kept of each picture.
        device: "cpu", "cuda" or "cuda:N".
        batch_size: B, pictures in one pass.

    Attributes:
        side: S, of the pictures.
        tokens: P.
        width: C, numbers in a row.
        free: batches that nobody uses.
        alone: whether a picture's row depends on its batch here. Then a CPU computes each picture
            by itself.
    """

    def __init__(
        self, encoder: VisionEncoder, pooled_side: int, device: str, batch_size: int
    ) -> None:
        self.device, self.batch_size = torch.device(device), batch_size
        self.cuda = self.device.type == "cuda"
        self.side, self.width = encoder.config.image_size, encoder.config.hidden_size
        self.tokens = pooled_side**2
        if self.cuda:
            torch.cuda.set_device(self.device)
            self._copy_stream = torch.cuda.Stream(self.device)
            self._encoder = arrange(encoder, pooled_side, mlp_multiple=MLP_MULTIPLE)
            self._encoder = self._encoder.to(self.device, torch.bfloat16)
        else:
            torch.set_num_threads(1)
            self._encoder = arrange(encoder, pooled_side).float()
        self.alone = not self._rows_are_independent()
        self.free: queue.Queue[FrameBatch] = queue.Queue()
        self._memory: Any = None  # which all graphs share: they run one after the other
        for _ in range(BATCHES):
            self.free.put(self._new_batch())
        self.batches = self.frames = 0
        self.busy_s = 0.0

    def _new_batch(self) -> FrameBatch:
        pictures = (self.batch_size, self.side, self.side, 3)
        rows = (self.batch_size, self.tokens, self.width)
        batch = FrameBatch(
            torch.zeros(pictures, dtype=torch.uint8, device=self.device),
            torch.zeros(rows, dtype=torch.bfloat16, pin_memory=self.cuda),
        )
        if self.cuda:
            batch.graph = torch.cuda.CUDAGraph()
            with torch.inference_mode(), torch.cuda.graph(batch.graph, pool=self._memory):
                batch.computed_BPC = self._forward(batch.pixels_BSS3)
            self._memory = batch.graph.pool()
        return batch

    def register(self, buffer: FrameBuffer) -> None:
        """Make the frame buffer's memory known to the GPU, so that copies out of it run beside
        everything else.

        Raises:
            RuntimeError: CUDA refuses it.
        """
        if self.cuda:
            address = buffer.pictures.__array_interface__["data"][0]
            code = torch.cuda.cudart().cudaHostRegister(address, buffer.pictures.nbytes, 0)
            if int(code):
                raise RuntimeError(
                    f"cudaHostRegister of {buffer.pictures.nbytes:,} bytes failed with code "
                    f"{int(code)}"
                )

    def load(self, batch: FrameBatch, row: int, picture: np.ndarray) -> None:
        """Put a picture into a batch. On a GPU this only starts the copy: see `copied`.

        Args:
            batch: from `free`.
            row: the picture's place in it.
            picture: uint8 [S, S, 3]; it must not change before the copy is done.
        """
        source = torch.from_numpy(picture)
        if not self.cuda:
            batch.pixels_BSS3[row].copy_(source)
            return
        with torch.cuda.stream(self._copy_stream):
            if row == 0 and batch.done is not None:
                self._copy_stream.wait_event(batch.done)
            batch.pixels_BSS3[row].copy_(source, non_blocking=True)

    def copied(self) -> Any:
        """An event that has passed once all pictures loaded so far are on the device. None if they
        are there already.
        """
        return self._copy_stream.record_event() if self.cuda else None

    @torch.inference_mode()
    def launch(self, batch: FrameBatch, rows: int) -> None:
        """Start to encode a batch: its first `rows` pictures. What is behind them is left over from
        earlier batches, and is computed in vain.
        """
        self.batches += 1
        self.frames += rows
        if not self.cuda:
            before = time.monotonic()
            if self.alone:
                for i in range(rows):
                    batch.rows_BPC[i : i + 1] = self._forward(batch.pixels_BSS3[i : i + 1])
            else:
                batch.rows_BPC.copy_(self._forward(batch.pixels_BSS3))
            self.busy_s += time.monotonic() - before
            return
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(self._copy_stream.record_event())
        batch.started, batch.done = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        batch.started.record(stream)
        batch.graph.replay()
        assert batch.computed_BPC is not None
        batch.rows_BPC.copy_(batch.computed_BPC, non_blocking=True)
        batch.done.record(stream)

    def result(self, batch: FrameBatch) -> np.ndarray:
        """Wait for a launched batch.

        Returns:
            Its rows: the bit patterns of bfloat16, as uint16 [B, P, C].
        """
        if self.cuda:
            batch.done.synchronize()
            self.busy_s += batch.started.elapsed_time(batch.done) / 1000
        return batch.rows_BPC.view(torch.uint16).numpy()

    def _forward(self, pixels_BSS3: Tensor) -> Tensor:
        with sdpa_kernel(ATTENTION, set_priority=True):
            return self._encoder(pixels_BSS3)

    def facts(self) -> dict[str, Any]:
        """What the coordinator must know, and what a person may want to know."""
        return {
            "side": self.side,
            "device": torch.cuda.get_device_name(self.device) if self.cuda else "cpu",
            "gpu": self.cuda,
            "precision": "bfloat16" if self.cuda else "float32",
            "alone": self.alone,
            "torch": torch.__version__,
        }

    def stats(self) -> dict[str, float]:
        """What it has done so far, in counts, seconds and bytes."""
        memory = torch.cuda.max_memory_allocated(self.device) if self.cuda else 0
        return {
            "frames": self.frames,
            "batches": self.batches,
            "busy_s": self.busy_s,
            "device_bytes": memory,
        }

    @torch.inference_mode()
    def _rows_are_independent(self) -> bool:
        """Whether a picture's row is bit for bit the same at another place of a batch, among other
        pictures.
        """
        shape, generator = (self.batch_size, self.side, self.side, 3), torch.Generator()
        pixels = torch.randint(
            0, 256, shape, dtype=torch.uint8, generator=generator.manual_seed(0)
        ).to(self.device)
        rows = self._forward(pixels)
        rows_in_other_places = self._forward(pixels.flip(0)).flip(0)
        other = pixels.clone()
        other[1::2] = 255 - other[1::2]
        rows_among_others = self._forward(other)
        return bool(
            torch.equal(rows, rows_in_other_places)
            and torch.equal(rows[::2], rows_among_others[::2])
        )
