"""The line of keys at the bottom: where it is too narrow for all of them, how to get help, type and leave stays."""

from collections.abc import Sequence
from typing import Final

from textual.app import ComposeResult
from textual.events import Resize
from textual.widget import Widget
from textual.widgets import Footer
from textual.widgets._footer import FooterKey

ALWAYS: Final = frozenset({"help", "command", "leave"})


class KeyLine(Footer):
    """A `Footer` that never scrolls: it leaves out what does not fit, the last first."""

    def __init__(self) -> None:
        super().__init__(show_command_palette=False, compact=True)

    def compose(self) -> ComposeResult:
        """As many keys as there is room for, in their order."""
        yield from fitting(list(super().compose()), self.app.size.width)

    async def on_resize(self, event: Resize) -> None:
        """Another width: other keys fit."""
        await self.recompose()


def fitting(keys: Sequence[Widget], width: int) -> list[Widget]:
    """Those that fit, and always those of `ALWAYS`."""
    room = width - sum(_wide(key) for key in keys if _always(key))
    kept: list[Widget] = []
    for key in keys:
        if not _always(key):
            room -= _wide(key)
        if _always(key) or room >= 0:
            kept.append(key)
    return kept


def _always(key: Widget) -> bool:
    return isinstance(key, FooterKey) and key.action in ALWAYS


def _wide(key: Widget) -> int:
    """Key, description, and the gaps around it."""
    return len(key.key_display) + len(key.description) + 2 if isinstance(key, FooterKey) else 0
