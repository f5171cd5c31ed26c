"""Chooses the floating-point precision of training."""

from __future__ import annotations

import torch

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def choose_precision(use_cpu: bool = False) -> tuple[str, str]:
    """bf16 where the device supports it, else fp32; and the reason in words."""
    if torch.cuda.is_available() and not use_cpu:
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", f"{torch.cuda.get_device_name()} supports it"
        return "fp32", f"{torch.cuda.get_device_name()} does not support bf16"
    if torch.accelerator.is_available() and not use_cpu:
        return "fp32", f"bf16 has not been tried on {torch.accelerator.current_accelerator()}"
    instructions = [name for name in ("avx512_bf16", "amx_tile") if _cpu_has(name)]
    if instructions:
        return "bf16", f"this CPU has {instructions[-1]}"
    return "fp32", "this CPU has no bf16 instructions, without which bf16 is slower"


def _cpu_has(name: str) -> bool:
    """Whether the CPU has these instructions; False if PyTorch no longer has its private function for them."""
    test = getattr(torch.cpu, f"_is_{name}_supported", None)
    return bool(test is not None and test())
