"""The small picture of a loss fits into what the UI shows without a click, however long the run."""

import io
import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from assets.checkpoints.curve import small_loss_curve
from assets.records.rendering import INLINE, small_picture
from training.metrics import METRICS_NAME


@pytest.mark.parametrize("steps", [1, 7, 3000])
def test_the_loss_is_shown_at_once(tmp_path: Path, steps: int) -> None:
    noise = random.Random(0)
    lines = [
        json.dumps(
            {
                "step": step,
                "loss": None if step == 5 else 9 / (1 + step / 100) + noise.random(),
                "stream": "long" if step % 2 else "short",
            }
        )
        for step in range(1, steps + 1)
    ]
    (tmp_path / METRICS_NAME).write_text("\n".join(lines) + "\n")
    png = small_loss_curve(SimpleNamespace(out=str(tmp_path)))
    caption = "**12.345** first tenth of the steps, **12.345** last tenth; zero is at the bottom"
    shown = small_picture(png, caption).value
    assert len(shown) <= INLINE
    assert "data:image/png" in shown
    picture = Image.open(io.BytesIO(png))
    assert picture.size == (240, 60)
    assert len(picture.convert("RGB").getcolors()) >= (3 if steps == 1 else 4)
