"""A checkpoint's folder comes from a stranger: nothing of it is run, and nothing else is read."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.hf import HourLlavaForCausalLM
from model.weights.loading import load_model, load_tokenizer
from model.weights.tiny import build_tiny

ROOT = Path(__file__).parents[3]
LOADING = "model/weights/loading.py"
SHUT = {"trust_remote_code": "False", "local_files_only": "True"}

EVIL = "from pathlib import Path\nPath(__file__).with_name('RAN')\nopen({mark!r}, 'w').close()\n"
CLASSES = """
from transformers import PretrainedConfig, PreTrainedTokenizer, ProcessorMixin
class Evil(PretrainedConfig): pass
class EvilTokenizer(PreTrainedTokenizer): pass
class EvilProcessor(ProcessorMixin): pass
def generate(*_, **__): return "owned"
"""

# Whatever is asked at the terminal meanwhile, the person there says yes.
LOAD_ALL = """
import sys
from pathlib import Path
from assets.inference.checkpoint import load_checkpoint
from model.weights.loading import load_image_text_model, load_tokenizer
folder = Path(sys.argv[1])
def attempt(work):
    try:
        work()
    except (ValueError, OSError) as error:
        print(type(error).__name__)
attempt(lambda: load_checkpoint(folder, "cpu"))
attempt(lambda: load_tokenizer(folder))
attempt(lambda: load_image_text_model(folder, "auto"))
print("done")
"""


@pytest.fixture
def hostile(tmp_path):
    """A whole checkpoint that asks in every way that transformers knows to be run; and the file
    that is there once it was.
    """
    folder, mark = tmp_path / "export", tmp_path / "RAN"
    build_tiny(folder)
    (folder / "evil.py").write_text(EVIL.format(mark=str(mark)) + CLASSES)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(EVIL.format(mark=str(mark)) + CLASSES)
    for file, classes in {
        "config.json": {
            "AutoConfig": "evil.Evil",
            "AutoModelForImageTextToText": "evil.Evil",
            "AutoModelForCausalLM": "evil.Evil",
            "AutoTokenizer": ["evil.EvilTokenizer", None],
        },
        "tokenizer_config.json": {"AutoTokenizer": ["evil.EvilTokenizer", None]},
        "processor_config.json": {"AutoProcessor": "evil.EvilProcessor"},
    }.items():
        written = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**written, "auto_map": classes}))
    return folder, mark


def run_load_all(folder, tmp_path):
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", LOAD_ALL, str(folder)]
    return subprocess.run(
        command, cwd=ROOT, env=environment, input="y\n" * 20, capture_output=True, text=True
    )


@pytest.mark.slow
def test_a_hostile_checkpoint_runs_nothing(hostile, tmp_path):
    folder, mark = hostile
    done = run_load_all(folder, tmp_path)
    assert done.stdout.endswith("done\n"), done.stderr
    assert not mark.exists()
    with pytest.raises(ValueError, match="holds custom_generate"):
        load_model(folder, "auto")


@pytest.mark.slow
def test_without_what_is_refused_it_loads_and_still_runs_nothing(hostile, tmp_path):
    folder, mark = hostile
    (folder / "custom_generate" / "generate.py").unlink()
    (folder / "custom_generate").rmdir()
    done = run_load_all(folder, tmp_path)
    assert done.stdout == "done\n", done.stdout + done.stderr
    assert not mark.exists()


def test_a_class_that_only_the_folders_code_knows_is_refused_and_not_run(hostile):
    folder, mark = hostile
    (folder / "custom_generate" / "generate.py").unlink()
    (folder / "custom_generate").rmdir()
    for name in ("config.json", "tokenizer_config.json"):
        written = json.loads((folder / name).read_text())
        written |= {"tokenizer_class": "EvilTokenizer"}
        written |= {"model_type": "evil"} if name == "config.json" else {}
        (folder / name).write_text(json.dumps(written))
    with pytest.raises(ValueError, match="code of a checkpoint is never run"):
        load_tokenizer(folder)
    assert not mark.exists()


def test_from_pretrained_itself_takes_no_generate_from_a_folder(hostile):
    folder, mark = hostile
    model = HourLlavaForCausalLM.from_pretrained(folder, trust_remote_code=False)
    assert not mark.exists()
    assert model.generate(torch.tensor([[1, 2]]), max_new_tokens=1).shape == (1, 3)


def test_a_folder_that_names_another_checkpoint_as_its_base_is_refused(tmp_path):
    build_tiny(tmp_path / "mine")
    build_tiny(tmp_path / "other", seed="other")
    named = {"base_model_name_or_path": str(tmp_path / "other"), "peft_type": "LORA"}
    (tmp_path / "mine" / "adapter_config.json").write_text(json.dumps(named))
    for load in (lambda folder: load_model(folder, "auto"), load_tokenizer):
        with pytest.raises(ValueError, match=r"holds adapter_config\.json"):
            load(tmp_path / "mine")


def test_pickled_weights_are_not_opened(tmp_path):
    build_tiny(tmp_path)
    model = load_model(tmp_path, torch.float32)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OSError, match="safetensors"):
        load_model(tmp_path, torch.float32)


# -- the source -----------------------------------------------------------------------------------


def open_loads(tree):
    """Lines that load something of transformers without saying that no code of it may run."""
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).endswith(".from_pretrained")
        and not {k.arg: ast.unparse(k.value) for k in node.keywords}.items() >= SHUT.items()
        and not any(k.arg is None and ast.unparse(k.value) == "_CLOSED" for k in node.keywords)
    ]


@pytest.mark.slow
def test_nothing_is_loaded_from_a_folder_without_saying_that_its_code_is_not_run():
    files = [
        path
        for room in ("pipeline", "assets", "training", "model", "benchmarks", "docs")
        for path in (ROOT / room).rglob("*.py")
    ]
    found = {
        str(path.relative_to(ROOT)): lines
        for path in files
        if (lines := open_loads(ast.parse(path.read_text())))
    }
    assert found == {}
    auto = {str(p.relative_to(ROOT)) for p in files if "AutoTokenizer.from" in p.read_text()}
    assert auto == {LOADING}


def test_the_search_finds_what_it_searches_for():
    assert open_loads(ast.parse("AutoTokenizer.from_pretrained(x)")) == [1]
    assert open_loads(ast.parse("A.from_pretrained(x, **more)")) == [1]
    shut = "A.from_pretrained(x, trust_remote_code=False, local_files_only=True)"
    assert open_loads(ast.parse(shut)) == []
