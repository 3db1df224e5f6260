"""Synthesis: traces by declaration, and specs derived from traces.

`Spec` declares, `synthesise` makes the trace, `fit` turns a trace into a spec. Names are loaded on
first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmbk.trace.synthesis.declare import specs as specs
    from vmbk.trace.synthesis.fitting import Fit as Fit
    from vmbk.trace.synthesis.fitting import fit as fit
    from vmbk.trace.synthesis.generate import synthesise as synthesise
    from vmbk.trace.synthesis.spec import Burst as Burst
    from vmbk.trace.synthesis.spec import Content as Content
    from vmbk.trace.synthesis.spec import Mix as Mix
    from vmbk.trace.synthesis.spec import Spec as Spec
    from vmbk.trace.synthesis.spec import VolumeSpec as VolumeSpec
    from vmbk.trace.synthesis.spec import Workload as Workload

_HOME = {
    "specs": "declare",
    "Fit": "fitting",
    "fit": "fitting",
    "synthesise": "generate",
    "Burst": "spec",
    "Content": "spec",
    "Mix": "spec",
    "Spec": "spec",
    "VolumeSpec": "spec",
    "Workload": "spec",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
