"""Hour-LLaVA as a model of lmms-eval, which then drives it through its own benchmarks.

    pip install lmms-eval lmms-eval --model hour_llava --model_args pretrained=path/to/export
    --tasks videomme --batch_size 1

lmms-eval finds it by this project's entry point in the group ``lmms_eval.models``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from assets.inference.respond import Responder

manifest = ModelManifest(
    "hour_llava", simple_class_path="assets.inference.lmms_adapter.HourLlavaLmms"
)


class HourLlavaLmms(lmms):
    """What lmms-eval calls: greedy generation and the likelihood of given answers, for videos,
    images and text.

    Args:
        pretrained: an export folder, or a released checkpoint.
        device: ``auto``, ``cpu`` or ``cuda``.
        batch_size: requests that pass the model together.
        max_batch_size: handed over by lmms-eval for batches that it sizes itself; these are not.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        device: str = "auto",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            raise ValueError(
                f"unknown model_args {', '.join(sorted(unknown))} (known: pretrained, device, "
                "batch_size)"
            )
        if not str(batch_size).isdecimal() or int(batch_size) < 1 or max_batch_size is not None:
            raise ValueError(
                f"batch_size is {batch_size!r}; give a number, and no max_batch_size: none is "
                "found here"
            )
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError(
                "several processes: this adapter runs as one; leave out torchrun or accelerate "
                "launch"
            )
        self.responder = Responder(pretrained, device, int(batch_size))
        self.device = self.responder.model.device

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        asked = []
        for request in requests:
            context, settings, to_visual, doc_id, task, split = request.args
            asked.append((context, to_visual(self.task_dict[task][split][doc_id]), dict(settings)))
        return self.responder.generate(asked)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        asked = []
        for request in requests:
            context, to_target, to_visual, doc_id, task, split = request.args
            doc = self.task_dict[task][split][doc_id]
            target = to_target if isinstance(to_target, str) else to_target(doc)
            asked.append((context, to_visual(doc), target))
        return self.responder.likelihood(asked)

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise ValueError(
            "Hour-LLaVA answers one question at a time; tasks of several rounds cannot be run "
            "with it"
        )
