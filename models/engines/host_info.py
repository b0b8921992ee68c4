"""Describes the machine that a measurement ran on."""

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

from models.engines.selection import has_gpu

CPU_FLAGS = re.compile(r"amx\w*|avx512_bf16|avx512_vnni|avx_vnni")  # the instructions that make bf16 and int8 fast


def host_info() -> dict[str, Any]:
    """The CPU's name, cores and flags for bf16 and int8, the GPU's name, and the load average of the last minute."""
    cpu, flags = platform.processor(), set[str]()
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        lines = [line.partition(":") for line in cpuinfo.read_text().splitlines()]
        fields = {key.strip(): value.strip() for key, _, value in lines}
        cpu = fields.get("model name", cpu)
        flags = {flag for flag in fields.get("flags", fields.get("Features", "")).split() if CPU_FLAGS.fullmatch(flag)}
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {"cpu": cpu, "cores": os.cpu_count(), "flags": sorted(flags), "gpu": gpu_name(), "load": load}


def gpu_name() -> str | None:
    """The GPU's name as nvidia-smi prints it; None without a GPU."""
    if not has_gpu():
        return None
    try:
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"
