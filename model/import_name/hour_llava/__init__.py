"""`import hour_llava` makes transformers know this model: its Auto classes, its pipeline.

transformers finds a model in three ways: in its own sources, in code that comes with a checkpoint
(`trust_remote_code`), or registered by something that was imported. It has no entry points, so an
installed package has to be imported. This one has the name that an export gives as its
`model_type`, which is the name in transformers' message where it is missing, and which no script of
a user hides: a `model.py` beside the script would hide the package `model`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
# Beside the package `model` when installed, inside of it in a source tree.
_FOLDER = next(
    folder for folder in (_HERE.parent / "model", _HERE.parents[1]) if (folder / "hf.py").exists()
)


def _register() -> None:
    """Import `model.hf` of this project, also where something else has the name `model`."""
    hidden = sys.modules.get("model")
    if hidden is None:
        found = importlib.util.find_spec("model")
        own = found is not None and found.origin == str(_FOLDER / "__init__.py")
    else:
        own = getattr(hidden, "__file__", None) == str(_FOLDER / "__init__.py")
    if own:
        importlib.import_module("model.hf")
        return
    spec = importlib.util.spec_from_file_location(
        "model", _FOLDER / "__init__.py", submodule_search_locations=[str(_FOLDER)]
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules["model"] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(sys.modules["model"])
        importlib.import_module("model.hf")
    finally:  # the name is the user's again; our submodules keep theirs
        if hidden is None:
            del sys.modules["model"]
        else:
            sys.modules["model"] = hidden


_register()
