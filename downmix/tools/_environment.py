"""Where figures are measured: on what device, with which versions, by which commit."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


def environment(device: torch.device) -> dict[str, Any]:
    """Where the figures were measured: device, threads, versions."""
    packages = {}
    for name in ("downmix", "torch", "timm", "numba", "triton"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {
        "device": f"{device.type} {name}",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": packages,
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")  # Linux only; elsewhere the platform module knows
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())


def commit() -> str:
    """The commit of downmix that ran, marked where its files differ; empty where it is not run from its clone."""
    package = Path(__file__).parents[1]
    if not (package.parent / ".git").exists():  # git would answer for a repository that downmix is installed inside
        return ""
    try:
        commit, changes = (
            subprocess.run(["git", *command], cwd=package, capture_output=True, text=True).stdout.strip()
            for command in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain", "."))
        )
    except FileNotFoundError:  # no git
        return ""
    return commit + ("-dirty" if changes else "")
