"""The machine that figures were measured on."""

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

from models.engines.selection import has_gpu

CPU_FLAGS = re.compile(r"amx\w*|avx512_bf16|avx512_vnni|avx_vnni")  # what bf16 and int8 are quick with


def host_info() -> dict[str, Any]:
    """The processor's name, cores and flags for small numbers, the GPU's name, and how busy the machine is."""
    cpu, flags = platform.processor(), set[str]()
    if (info := Path("/proc/cpuinfo")).exists():
        lines = [line.partition(":") for line in info.read_text().splitlines()]
        told = {key.strip(): value.strip() for key, _, value in lines}
        cpu = told.get("model name", cpu)
        flags = {flag for flag in told.get("flags", told.get("Features", "")).split() if CPU_FLAGS.fullmatch(flag)}
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {"cpu": cpu, "cores": os.cpu_count(), "flags": sorted(flags), "gpu": gpu_name(), "load": load}


def gpu_name() -> str | None:
    """As NVIDIA's driver has it; None without a GPU."""
    if not has_gpu():
        return None
    try:
        asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"
