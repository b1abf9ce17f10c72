"""Loads an exported checkpoint as any user would and says what it found, as one JSON object on its
last line.

    python -m assets.checkpoints.try_loading EXPORT_FOLDER

A process of its own: what loads a checkpoint imports torch and takes the checkpoint's size in
memory, and when that is not there, the system ends it and not the step that asks.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

from training.supervise import die_with_parent


def load(export: Path) -> dict[str, list[str] | int]:
    """`from_pretrained`, every tensor looked at, and one sentence read.

    Returns:
        `tensors`: how many there are; `faults`: what is wrong, a sentence each.
    """
    import torch

    from model.weights.loading import load_model_and_faults, load_tokenizer

    model, info = load_model_and_faults(export, "auto")
    faults = [
        f"{what.replace('_', ' ')}: {', '.join(sorted(map(str, info[what]))[:5])}"
        for what in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if info[what]
    ]
    tensors = dict(model.state_dict())
    faults += [
        f"{name} is not finite"
        for name, tensor in tensors.items()
        if not bool(torch.isfinite(tensor).all())
    ]
    ids = load_tokenizer(export)("What happens in the video?", return_tensors="pt").input_ids
    with torch.inference_mode():
        logits = model.eval()(input_ids=ids).logits
    if not bool(torch.isfinite(logits).all()):
        faults.append("its answer to a sentence is not finite")
    return {"tensors": len(tensors), "faults": faults}


if __name__ == "__main__":
    die_with_parent(signal.SIGKILL)
    print(json.dumps(load(Path(sys.argv[1]))))
