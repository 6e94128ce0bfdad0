"""The help page: the keys of this screen, the keys everywhere, the commands."""

from collections.abc import Iterable

from rich.text import Text
from textual.binding import Binding, BindingType

from .commands import COMMANDS
from .keys import GLOBAL
from .screens.base import RunScreen


def help_lines(screen: RunScreen | None) -> list[Text]:
    """Everything that can be pressed or typed."""
    lines: list[Text] = []
    own = type(screen).__dict__.get("BINDINGS", ()) if screen is not None else ()
    if screen is not None and own:
        lines += [Text(f"on {screen.NAME}", "bold underline"), *_keys(own, screen), Text()]
    lines += [Text("everywhere", "bold underline"), *_keys(GLOBAL, screen), Text()]
    lines.append(Text("after :", "bold underline"))
    for name, command in COMMANDS.items():
        lines.append(Text(f"  {f':{name} {command.words}':<48} ", "cyan").append(command.text, "default"))
    lines += [Text(), Text("ctrl+p: the palette. A run is never ended by leaving this terminal.", "dim")]
    return lines


def _keys(bindings: Iterable[BindingType], screen: RunScreen | None) -> list[Text]:
    out = []
    for binding in bindings:
        if isinstance(binding, Binding):
            key = screen.app.get_key_display(binding) if screen else binding.key
            changed = screen.app._keymap.get(binding.id or "") if screen else None
            shown = changed or binding.key_display or key
            out.append(Text(f"  {shown:<12}", "cyan").append(f"{binding.description:<18}", "default").append(
                binding.tooltip, "dim"
            ))  # fmt: skip
    return out
