"""Each module of assets/sources/ that defines a kind of source is one, without a list anywhere."""

import subprocess
import sys
from typing import get_args

from assets.sources.kinds import KINDS

HEAVY = ("yt_dlp", "huggingface_hub", "requests", "torch")


def test_every_kind_is_the_section_of_the_module_with_its_name():
    assert {"hub", "youtube", "url", "drop"} <= set(KINDS)
    for kind, section in KINDS.items():
        assert section.__module__ == f"assets.sources.{kind}"
        assert get_args(section.model_fields["kind"].annotation) == (kind,)


def test_reading_the_settings_imports_nothing_heavy():
    script = f"""
import sys
import assets.deployment.settings
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
