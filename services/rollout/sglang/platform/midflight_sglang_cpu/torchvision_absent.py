"""A stand-in for torchvision, of which SGLang's configuration modules read one enumeration.

PyPI's torchvision is linked against CUDA and cannot be imported beside a CPU build of torch. A real one is left alone.
"""

import enum
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

MODULES = (
    "torchvision",
    "torchvision.io",
    "torchvision.transforms",
    "torchvision.transforms.functional",
    "torchvision.transforms.v2",
    "torchvision.transforms.v2.functional",
)
InterpolationMode = enum.Enum("InterpolationMode", "NEAREST NEAREST_EXACT BILINEAR BICUBIC BOX HAMMING LANCZOS")


def install() -> None:
    """Put the modules in place, once, unless torchvision is installed."""
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision"):
        return
    from transformers.utils.import_utils import is_torchvision_available

    is_torchvision_available()  # transformers remembers the answer, which must be no: it would use the real thing
    for name in MODULES:
        module = ModuleType(name)
        module.__spec__, module.__path__ = ModuleSpec(name, None, is_package=True), []
        vars(module)["InterpolationMode"] = InterpolationMode
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
