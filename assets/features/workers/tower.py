"""SigLIP as feature extraction runs it: uint8 pictures in, pooled bfloat16 rows out, in batches of
one fixed size.

On a GPU the tower is compiled and computes in bfloat16, with pooling in float32; two batches are in
flight. On a CPU it computes in float32 on one thread. Which other pictures share a batch does not
change a picture's row (checked on every start), so that a file's bytes depend neither on the number
of decoders nor on what happened to be decoded beside it.
"""

from __future__ import annotations

import json
import queue
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from assets.features.workers.frame_buffer import FrameBuffer
from model.config import VisionConfig
from model.vision import VisionEncoder, VisionLayer, pool_frames
from model.weights.tensors import read_tensors
from model.weights.vision_encoder import load_vision_encoder, siglip_name

ATTENTION = [  # best first
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
IN_FLIGHT = 3  # batches: one being filled, one being computed, one being written


@dataclass(slots=True)
class FrameBatch:
    """One batch's buffers: pictures on the device, rows on the host."""

    pixels_BSS3: Tensor
    rows_BPC: Tensor
    started: Any = None
    done: Any = None


class VisionTower:
    """A vision encoder with the buffers to feed it.

    Args:
        encoder: in any float type.
        pooled_side: P = pooled_side**2 tokens are kept of each picture.
        device: "cpu", "cuda" or "cuda:N".
        batch_size: pictures in one pass.
    """

    def __init__(
        self, encoder: VisionEncoder, pooled_side: int, device: str, batch_size: int
    ) -> None:
        self.device, self.batch_size, self.pooled_side = (
            torch.device(device),
            batch_size,
            pooled_side,
        )
        self.cuda = self.device.type == "cuda"
        self.side, self.tokens, self.width = (
            encoder.config.image_size,
            pooled_side**2,
            encoder.config.hidden_size,
        )
        self._encoder: Any = FrameEncoder(encoder, pooled_side)
        if self.cuda:
            torch.cuda.set_device(self.device)
            self._copy_stream = torch.cuda.Stream(self.device)
            self._encoder = torch.compile(
                self._encoder.to(self.device, torch.bfloat16), fullgraph=True, dynamic=False
            )
        else:
            torch.set_num_threads(1)
            self._encoder = self._encoder.float()
        self.free: queue.Queue[FrameBatch] = queue.Queue()
        for _ in range(IN_FLIGHT):
            self.free.put(
                FrameBatch(
                    torch.zeros(
                        (batch_size, self.side, self.side, 3), dtype=torch.uint8, device=self.device
                    ),
                    torch.zeros(
                        (batch_size, self.tokens, self.width),
                        dtype=torch.bfloat16,
                        pin_memory=self.cuda,
                    ),
                )
            )
        self.alone = not self._independent()
        self.batches = self.frames = 0
        self.busy_s = 0.0
        self.started = time.monotonic()

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
        """Put a picture into a batch. On a GPU the copy has been asked for, not done: see
        :meth:`copied`.
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
        """An event that has passed once all pictures loaded so far are on the device; None if they
        are already.
        """
        return self._copy_stream.record_event() if self.cuda else None

    @torch.inference_mode()
    def launch(self, batch: FrameBatch, rows: int) -> None:
        """Encode the first ``rows`` pictures of a batch; the others are whatever lay there before."""
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
        batch.rows_BPC.copy_(self._forward(batch.pixels_BSS3), non_blocking=True)
        batch.done.record(stream)

    def result(self, batch: FrameBatch) -> np.ndarray:
        """Rows of a launched batch, waiting for them: bit patterns of bfloat16 as uint16 [B, P, C]."""
        if self.cuda:
            batch.done.synchronize()
            self.busy_s += batch.started.elapsed_time(batch.done) / 1000
        return batch.rows_BPC.view(torch.uint16).numpy()

    def _forward(self, pixels_BSS3: Tensor) -> Tensor:
        with sdpa_kernel(ATTENTION, set_priority=True):
            return self._encoder(pixels_BSS3)

    def facts(self) -> dict[str, Any]:
        """What the coordinator has to know, and what a person may want to."""
        return {
            "side": self.side,
            "device": torch.cuda.get_device_name(self.device) if self.cuda else "cpu",
            "precision": "bfloat16" if self.cuda else "float32",
            "alone": self.alone,
            "torch": torch.__version__,
        }

    def stats(self) -> dict[str, float]:
        memory = torch.cuda.max_memory_allocated(self.device) if self.cuda else 0
        return {
            "frames": self.frames,
            "batches": self.batches,
            "busy_s": self.busy_s,
            "device_bytes": memory,
        }

    @torch.inference_mode()
    def _independent(self) -> bool:
        """Whether a picture's row is bit for bit the same at another place of a batch, among other
        pictures.
        """
        pixels = torch.randint(
            0,
            256,
            (self.batch_size, self.side, self.side, 3),
            dtype=torch.uint8,
            generator=torch.Generator().manual_seed(0),
        ).to(self.device)
        here, there = self._forward(pixels), self._forward(pixels.flip(0)).flip(0)
        other = pixels.clone()
        other[1::2] = 255 - other[1::2]
        return bool(torch.equal(here, there) and torch.equal(here[::2], self._forward(other)[::2]))


class FrameEncoder(nn.Module):
    """``model.vision.encode_frames`` arranged for throughput: pictures as they lie in the
    frame buffer, fewer and larger matrix products, the same result up to rounding.

    Args:
        encoder: whose weights are taken, in their type.
        pooled_side: P = pooled_side**2.
        fused_gelu: let the matrix product apply GELU to what it just computed, instead of another
            pass over memory.
    """

    def __init__(
        self,
        encoder: VisionEncoder,
        pooled_side: int,
        fused_gelu: bool = True,
    ) -> None:
        super().__init__()
        self.config, self.pooled_side, self.fused_gelu = encoder.config, pooled_side, fused_gelu
        self.patch_bias, self.positions = (
            encoder.patch_embedding.bias,
            encoder.position_embedding.weight,
        )
        # A patch's pixels in the order row, column, colour, as they lie in the picture.
        self.patch_weight = nn.Parameter(
            encoder.patch_embedding.weight.permute(0, 2, 3, 1).flatten(1).contiguous()
        )
        self.layers = encoder.layers
        layers = self._layers()
        self.qkv_weights = nn.ParameterList(
            torch.cat([x.q.weight, x.k.weight, x.v.weight]) for x in layers
        )
        self.qkv_biases = nn.ParameterList(
            torch.cat([x.q.bias, x.k.bias, x.v.bias]) for x in layers
        )

    def forward(self, pixels_BSS3: Tensor) -> Tensor:
        """uint8 [B, S, S, 3] to pooled rows, bfloat16 [B, P, C]."""
        side, patch = self.config.patches_per_side, self.config.patch_size
        pixels = (
            pixels_BSS3[:, : side * patch, : side * patch]
            .unflatten(2, (side, patch))
            .unflatten(1, (side, patch))
        )
        patches_BNp = pixels.transpose(2, 3).flatten(1, 2).flatten(2).float() / 127.5 - 1
        x_BNC = (
            F.linear(patches_BNp.to(self.patch_weight.dtype), self.patch_weight, self.patch_bias)
            + self.positions
        )
        for layer, weight, bias in zip(
            self._layers(), self.qkv_weights, self.qkv_biases, strict=True
        ):
            qkv = F.linear(layer.attention_norm(x_BNC), weight, bias).unflatten(
                -1, (3, self.config.num_heads, -1)
            )
            q_BHND, k_BHND, v_BHND = qkv.permute(2, 0, 3, 1, 4)
            seen_BHND = F.scaled_dot_product_attention(q_BHND, k_BHND, v_BHND)
            x_BNC = x_BNC + layer.out(seen_BHND.transpose(1, 2).flatten(2))
            x_BNC = x_BNC + layer.down(self._up(layer, layer.mlp_norm(x_BNC)))
        return pool_frames(x_BNC.float(), self.pooled_side).to(torch.bfloat16)

    def _layers(self) -> list[VisionLayer]:
        return cast(list[VisionLayer], list(self.layers))

    def _up(self, layer: VisionLayer, x_BNC: Tensor) -> Tensor:
        if not (self.fused_gelu and x_BNC.is_cuda):
            return F.gelu(layer.up(x_BNC), approximate="tanh")
        # cuBLASLt's GELU epilogue is the tanh approximation, as SigLIP's is.
        flat = torch._addmm_activation(
            layer.up.bias, x_BNC.flatten(0, 1), layer.up.weight.t(), use_gelu=True
        )
        return flat.unflatten(0, x_BNC.shape[:2])


def load_encoder(folder: Path) -> VisionEncoder:
    """A vision encoder of ours, or any SigLIP checkpoint: of a full one, the last layer and the
    heads are left out.

    Raises:
        ValueError: the files are not SigLIP's.
    """
    config = json.loads((folder / "config.json").read_text())
    if "vision_config" not in config and not config.get("vision_use_head", True):
        return load_vision_encoder(folder)
    vision = {**_SIGLIP_DEFAULTS, **config.get("vision_config", config)}
    state: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        state |= read_tensors(file)
    with torch.device("meta"):
        encoder = VisionEncoder(
            VisionConfig(
                vision["image_size"],
                vision["patch_size"],
                vision["hidden_size"],
                vision["intermediate_size"],
                vision["num_hidden_layers"] - 1,
                vision["num_attention_heads"],
                vision["layer_norm_eps"],
            )
        )
    names = {name: siglip_name(name) for name in encoder.state_dict()}
    if missing := sorted(set(names.values()) - set(state)):
        raise ValueError(f"{folder}: not a SigLIP checkpoint, it lacks {', '.join(missing[:3])}")
    try:
        encoder.load_state_dict(
            {ours: state[theirs] for ours, theirs in names.items()}, assign=True
        )
    except RuntimeError as error:
        raise ValueError(f"{folder}: its tensors do not fit its config.json: {error}") from error
    return encoder.eval()


_SIGLIP_DEFAULTS = {  # of transformers' SiglipVisionConfig, which config.json leaves out
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
    "layer_norm_eps": 1e-6,
}
