"""Which GPUs there are, and whether the stages of the settings' variants fit into them."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version

from assets.deployment.settings import Settings
from assets.sources.findings import Finding, missing, note, ok
from model.config import PRESETS, VARIANTS
from pipeline.doctor.machine import GIB, run_python


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as the driver tells it; `memory` in bytes."""

    name: str
    memory: float
    driver: str


def installed_gpus() -> list[Gpu]:
    """NVIDIA GPUs that the driver shows."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = "--query-gpu=name,memory.total,driver_version"
    done = subprocess.run(
        ["nvidia-smi", query, "--format=csv,noheader,nounits"], capture_output=True, text=True
    )
    if done.returncode:
        return []
    rows = [line.split(", ") for line in done.stdout.splitlines() if line]
    return [Gpu(name, float(mebibytes) * 2**20, driver) for name, mebibytes, driver in rows]


def check_gpus(settings: Settings, gpus: list[Gpu]) -> Iterator[Finding]:
    """Whether there are the GPUs that the settings' variants and processes need."""
    large = [
        name for name, chosen in settings.variants.items() if not VARIANTS[chosen.preset].is_demo
    ]
    if gpus:
        first = gpus[0]
        yield ok(
            "GPU",
            f"{len(gpus)} x {first.name}, {first.memory / GIB:.0f} GiB, driver {first.driver}",
        )
        yield _check_cuda()
    elif large:
        advice = f"train {', '.join(large)} on a machine with NVIDIA GPUs and their driver"
        yield missing("GPU", "nvidia-smi shows none", advice)
    else:
        yield ok("GPU", "none, and none needed: tiny trains on the CPU")
    if gpus and settings.training.processes > len(gpus):
        found = f"training.processes is {settings.training.processes}"
        advice = "set training.processes to the number of GPUs"
        yield missing("training.processes", found, advice)
    smallest = min((gpu.memory for gpu in gpus), default=None)
    for variant in large:
        yield from _check_stages(settings, variant, smallest)


def _check_cuda() -> Finding:
    said = run_python("import torch; print(torch.version.cuda, torch.cuda.is_available())")
    build, _, usable = said.partition(" ")
    if usable == "True":
        return ok("CUDA", f"torch for CUDA {build}")
    return missing("CUDA", f"torch for CUDA {build} cannot use the GPU", "update the NVIDIA driver")


def _check_stages(settings: Settings, variant: str, memory: float | None) -> Iterator[Finding]:
    """For each stage: whether its largest pack fits into a device.

    Args:
        memory: bytes of the smallest device; None tells how much a device needs.
    """
    from training.memory_plan import plan_memory
    from training.run_config import parse_run

    world = settings.training.processes * settings.training.nodes
    # Where a run reads and writes does not change its memory.
    stream = {"name": "any", "root": "", "indexes": ["index.json"]}
    nowhere = {"start": "", "out": "", "streams": [stream]}
    chosen = settings.variants[variant]
    for stage in chosen.stages:
        what = f"{variant}, stage {stage}"
        overrides = settings.training.overrides.get(f"stage{stage}", {})
        run = parse_run({"variant": chosen.preset, "stage": stage, **nowhere, **overrides})
        checkpointing = run.checkpointing is not False
        try:
            plan = plan_memory(
                run, PRESETS[chosen.preset], world, memory, checkpointing=checkpointing
            )
        except ValueError as error:
            problem, _, rest = str(error).partition(";")
            yield missing(what, problem, rest.removeprefix(" "))
            continue
        estimate = f"an estimated {plan.needed} on each of {world} device(s)"
        if memory is None:
            advice = "choose GPUs with that much, or more of them"
            yield note(what, f"needs {estimate}", advice)
        else:
            yield ok(what, f"{estimate}, {memory / GIB:.0f} GiB there")


def check_optional(settings: Settings) -> Iterator[Finding]:
    """Packages that make a GPU faster and that nothing needs, unless the settings ask for one."""
    has = importlib.util.find_spec
    if has("flash_attn"):
        yield ok("flash-attn", version("flash-attn"))
    else:
        found = "not installed, and not needed: torch's own attention kernels are used"
        yield ok("flash-attn", found)
    if has("PyNvVideoCodec"):
        yield ok("PyNvVideoCodec", version("PyNvVideoCodec"))
    elif settings.features.decoder == "nvdec":
        advice = "pip install PyNvVideoCodec"
        yield missing("PyNvVideoCodec", "features.decoder is nvdec", advice)
    else:
        found = f"not installed, and features.decoder is {settings.features.decoder}"
        yield ok("PyNvVideoCodec", found)
