"""Which parameters are tuned, at which rate, and how a step is taken."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor, nn

from training.adapters import is_adapter
from training.host_optimizer import AdamWOnHost
from training.parallel import Savings
from training.recipes import MODULES, Recipe
from training.sharded import own_part


def module_of(name: str) -> str:
    """The module (one of `recipes.MODULES`) that owns the parameter called `name` in a
    `HourLlava`.

    Raises:
        ValueError: the parameter belongs to none of them; it would silently never be trained.
    """
    head = name.partition(".")[0]
    if head in MODULES:
        return head
    if head == "image_newline":  # trains with the language model
        return "llm"
    raise ValueError(f"parameter {name!r} belongs to none of the modules {', '.join(MODULES)}")


def select(model: nn.Module, tuned: Iterable[str], adapted: Collection[str] = ()) -> None:
    """Let the parameters of the `tuned` modules require gradients, and no others.

    Args:
        adapted: modules of which only the adapters do.
    """
    chosen = set(tuned)
    for name, parameter in model.named_parameters():
        module = module_of(name)
        parameter.requires_grad_(module in chosen and (module not in adapted or is_adapter(name)))


def parameter_groups(model: nn.Module, rates: Mapping[str, float]) -> list[dict[str, object]]:
    """One optimizer group for each tuned module: `module`, `params`, `names`, `lr` and
    `peak` rate.

    Every parameter that requires a gradient is in exactly one group; this is asserted, because a
    parameter that is missing here trains silently at no rate, and one that is here twice at two.
    """
    groups: dict[str, dict[str, object]] = {
        module: {"module": module, "params": [], "names": [], "lr": rate, "peak": rate}
        for module, rate in rates.items()
    }
    for name, parameter in model.named_parameters():  # tied parameters are named once
        if parameter.requires_grad:
            group = groups[module_of(name)]
            group["params"].append(parameter)  # type: ignore[attr-defined]
            group["names"].append(name)  # type: ignore[attr-defined]
    listed = [id(parameter) for group in groups.values() for parameter in group["params"]]  # type: ignore[attr-defined]
    trainable = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert len(listed) == len(set(listed)), "a parameter is in two groups"
    assert set(listed) == trainable, "the groups do not partition the trainable parameters"
    empty = [module for module, group in groups.items() if not group["params"]]
    assert not empty, f"no trainable parameter in {', '.join(empty)}"
    return list(groups.values())


def build_optimizer(
    model: nn.Module, recipe: Recipe, savings: Savings | None = None
) -> torch.optim.Optimizer:
    """AdamW over `parameter_groups`, its state allocated: what fits now fits later, and a
    checkpoint can be read in.

    Args:
        savings: which of it lies on the host, which then takes the step.
    """
    savings = savings or Savings()
    groups = parameter_groups(model, recipe.rates)
    if savings.optimizer_on_host:
        return AdamWOnHost(groups, recipe.betas, recipe.weight_decay)
    cuda = all(group["params"][0].device.type == "cuda" for group in groups)  # type: ignore[index]
    fused = cuda or savings.parameters_on_host
    optimizer = torch.optim.AdamW(
        groups,
        betas=recipe.betas,
        weight_decay=recipe.weight_decay,
        fused=fused,
        foreach=None if fused else True,
    )
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros(
                    (), dtype=torch.float32, device=parameter.device if cuda else "cpu"
                ),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
    return optimizer


def rate_factor(step: int, total: int, warmup: float) -> float:
    """Share of the peak rate in optimizer step `step` (from 0) of `total`: linear rise, then a
    cosine to zero.

    The rise takes `ceil(warmup * total)` steps and starts above zero, so that no step is wasted.
    """
    rise = math.ceil(warmup * total)
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))


def set_rates(
    optimizer: torch.optim.Optimizer, step: int, total: int, warmup: float
) -> dict[str, float]:
    """Set every group's rate for `step` and return them by module."""
    factor = rate_factor(step, total, warmup)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    return {group["module"]: group["lr"] for group in optimizer.param_groups}


def gradient_norm(parameters: list[Tensor]) -> Tensor:
    """L2 norm over all gradients, a float32 scalar that is the same on every rank."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        raise RuntimeError(
            "no tuned parameter received a gradient; the loss does not depend on the tuned modules"
        )
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def scale_gradients(parameters: list[Tensor], factor: Tensor | float) -> None:
    """Multiply every gradient in place."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    local = [own_part(gradient) for gradient in gradients]
    torch._foreach_mul_(local, factor)
