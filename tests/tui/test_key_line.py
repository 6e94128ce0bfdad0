"""The keys at the bottom: however narrow, help, typing and leaving are among them."""

import asyncio
from typing import ClassVar

import pytest
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets._footer import FooterKey

from midflight.tui.keys import GLOBAL
from midflight.tui.screens.samples import Samples
from midflight.tui.widgets.key_line import ALWAYS, KeyLine

OWN = [binding for binding in Samples.BINDINGS if isinstance(binding, Binding)]


class Keys(App[None]):
    """The keys of the screen that has the most."""

    BINDINGS: ClassVar[list[BindingType]] = [*OWN, *GLOBAL]

    def compose(self) -> ComposeResult:
        """The line alone."""
        yield KeyLine()


@pytest.mark.parametrize("width", [40, 80, 200])
def test_what_must_be_seen_is_seen(width: int) -> None:
    """Whole, and in the order of the others."""

    async def check() -> None:
        app = Keys()
        async with app.run_test(size=(200, 10)) as pilot:
            await pilot.resize_terminal(width, 10)
            await pilot.pause()
            keys = list(app.query(FooterKey))
            assert {key.action for key in keys} >= ALWAYS
            assert all(key.region.right <= width for key in keys)
            everything = sum(binding.show for binding in (*OWN, *GLOBAL))
            assert (len(keys) == everything) is (width == 200)

    asyncio.run(check())
