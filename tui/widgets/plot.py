"""A plot as a widget: it is told what to draw, and draws it once, when it is seen."""

from rich.text import Text
from textual.widget import Widget

from midflight.tui.chart import Plan, chart


class Plot(Widget):
    """Shows a `Plan`; the same one again costs nothing."""

    DEFAULT_CSS = "Plot { height: 1fr; width: 1fr; }"

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self.plan: Plan | None = None

    def draw(self, plan: Plan | None) -> None:
        """Show this from now on."""
        if plan != self.plan:
            self.plan = plan
            self.refresh()

    def render(self) -> Text:
        """The lines, as large as the widget is."""
        size = self.content_size
        if self.plan is None or size.width < 4 or size.height < 3:
            return Text()
        return Text("\n").join(chart(self.plan, size.width, size.height))
