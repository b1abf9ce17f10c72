"""Shared fixtures. The code location reads its settings when it loads, so the tests name a deployment of their own."""

from __future__ import annotations

import os
import resource
from pathlib import Path

TESTS = Path(__file__).parent

os.environ["HOURLLAVA_CONFIG"] = str(TESTS / "deployment.yaml")
os.environ.setdefault("OMP_NUM_THREADS", "2")

# A StreamingDataset keeps some hundred descriptors of shared memory open until its process ends.
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 1 << 16) if most > 0 else 1 << 16, most))
