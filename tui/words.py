"""Numbers, sizes, times and other people's text as short words; and glyphs, with a plain twin for each."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, NamedTuple


class Glyphs(NamedTuple):
    """The marks the screens draw with."""

    active: str
    shadow: str
    previous: str
    standby: str
    arrow: str
    full: str
    empty: str
    warn: str
    up: str
    down: str
    folded: str
    open: str
    locked: str
    dot: str
    line: str
    more: str


UNICODE: Final = Glyphs("●", "○", "◌", "◐", "──▶", "█", "░", "⚠", "▲", "▼", "▸", "▾", "■", "·", "│", "…")
ASCII: Final = Glyphs("*", "o", "<", "~", "-->", "#", ".", "!", "^", "v", "+", "-", "L", ".", "|", "..")


def glyphs_of(environ: Mapping[str, str]) -> Glyphs:
    """Plain ones where the terminal would not show the others, or MIDFLIGHT_ASCII asks for them."""
    wanted = environ.get("MIDFLIGHT_ASCII", "")
    if wanted:
        return UNICODE if wanted == "0" else ASCII
    locale = environ.get("LC_ALL") or environ.get("LC_CTYPE") or environ.get("LANG") or "C.UTF-8"
    plain_locale = "utf" not in locale.lower()
    return ASCII if plain_locale or environ.get("TERM") in ("linux", "dumb", "vt100") else UNICODE


def number(value: object, digits: int = 4) -> str:
    """A value as short as it can be read."""
    if isinstance(value, bool) or value is None:
        return "-" if value is None else str(value).lower()
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    return str(value)


def count(value: float) -> str:
    """950, 8.2k, 1.5M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.1f}{unit}"
    return f"{value:.0f}"


def size(value: float) -> str:
    """Bytes: 512B, 3.1M, 61G."""
    for power, unit in ((30, "G"), (20, "M"), (10, "K")):
        if abs(value) >= 1 << power:
            scaled = value / (1 << power)
            return f"{scaled:.0f}{unit}" if scaled >= 10 else f"{scaled:.1f}{unit}"
    return f"{value:.0f}B"


def duration(seconds: float) -> str:
    """0.2s, 12s, 4m05s, 3h02m."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    if seconds < 60:
        return f"{seconds:.0f}s"
    minutes = int(seconds // 60)
    return f"{minutes}m{int(seconds % 60):02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def clock(ns: int) -> str:
    """Wall clock, UTC: 23:16:47."""
    return datetime.fromtimestamp(ns / 1e9, UTC).strftime("%H:%M:%S")


def plain(text: str) -> str:
    """Text of others on one line of a terminal: control characters shown, not obeyed."""
    return "".join(char if char.isprintable() else " " if char in "\n\t" else f"\\x{ord(char):02x}" for char in text)


def cut(text: str, width: int, glyphs: Glyphs) -> str:
    """A text in so many columns; one that was longer ends in a mark that says so."""
    return text if len(text) <= width else text[: max(0, width - len(glyphs.more))] + glyphs.more


def bar(part: float, whole: float, width: int, glyphs: Glyphs) -> str:
    """A bar as long as its share."""
    share = min(1.0, max(0.0, part / whole)) if whole > 0 else 0.0
    filled = round(share * width)
    return glyphs.full * filled + glyphs.empty * (width - filled)
