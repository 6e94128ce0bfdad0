"""The platform class: device `cpu`, plain torch operators, torch's own attention."""

from typing import Any

from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import PlatformCapabilities, SRTPlatform


class TorchCpuPlatform(CpuDeviceMixin, SRTPlatform):
    """What SGLang asks of a device. Every hook that is not here means: nothing special."""

    _enum = PlatformEnum.OOT
    device_name = "cpu"
    device_type = "cpu"
    capabilities = PlatformCapabilities()

    def get_default_attention_backend(self) -> str:
        """Scaled dot-product attention, once a sequence and layer."""
        return "torch_native"

    def get_dispatch_key_name(self) -> str:
        """The operator variant: `forward_native`."""
        return "native"

    def is_pin_memory_available(self, device: object = None) -> bool:
        """Nothing is copied to a device."""
        return False

    def init_backend(self) -> None:
        """Capturing routed experts allocates a pinned host buffer; on a CPU an ordinary one does."""
        from sglang.srt.mem_cache.pool_host import common  # needs the platform that is being made here

        common.ALLOC_MEMORY_FUNCS["cpu"] = _allocate


def _allocate(dims: Any, dtype: Any, device: Any, *, allocator: Any, **rest: Any) -> Any:
    """As SGLang calls it; the rest is about pinning."""
    return allocator.allocate(dims, dtype=dtype, device=device)
