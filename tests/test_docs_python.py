"""docs/python.md: what it shows runs, in the page's order."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from model.weights.tiny import build_tiny
from tests.pages import REPOSITORY, page
from tests.servers.clips import clip


@pytest.mark.slow
def test_the_page_loads_asks_and_trains(tmp_path: Path):
    build_tiny(tmp_path / "export")
    (tmp_path / "talk.mp4").write_bytes(clip(3))
    program = "\n".join(block.text for block in page("docs/python.md").blocks("python"))
    path = f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'model' / 'import_name'}"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, last = map(float, re.findall(r"^([\d.]+) -> ([\d.]+)$", done.stdout, re.M)[-1])
    assert last < first
    assert (tmp_path / "tuned" / "config.json").is_file()
