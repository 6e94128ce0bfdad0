"""The real SGLang rollout, which notes when a version came into force."""

from midflight.services.rollout.sglang.service import Sglang
from support.updates_rollout import Noting


class WatchedSglang(Noting, Sglang):
    """SGLang servers."""
