"""Which GPUs there are, and what makes them faster."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from importlib.metadata import version

from assets.deployment.settings import Settings
from assets.sources.findings import Finding, missing, ok
from pipeline.doctor.machine import GIB, run_python
from pipeline.estimate.installed import Gpu


def check_gpus(settings: Settings, gpus: list[Gpu]) -> Iterator[Finding]:
    """Whether there are the GPUs that the settings' variants and processes need; whether a stage
    fits into them is looked at in `fitting`.
    """
    large = large_variants(settings)
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
        names = ", ".join(settings.variants)
        yield ok("GPU", f"none, and none needed: {names} can be trained on the CPU")
    if gpus and settings.training.processes > len(gpus):
        found = f"training.processes is {settings.training.processes}"
        advice = "set training.processes to the number of GPUs"
        yield missing("training.processes", found, advice)


def large_variants(settings: Settings) -> list[str]:
    """The variants that are trained on GPUs."""
    return [name for name, variant in settings.variants.items() if not variant.fits_cpu]


def _check_cuda() -> Finding:
    said = run_python("import torch; print(torch.version.cuda, torch.cuda.is_available())")
    build, _, usable = said.partition(" ")
    if usable == "True":
        return ok("CUDA", f"torch for CUDA {build}")
    return missing("CUDA", f"torch for CUDA {build} cannot use the GPU", "update the NVIDIA driver")


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
