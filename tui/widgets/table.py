"""A table that is told what it should show, and changes only the cells that differ."""

from collections.abc import Sequence

from rich.text import Text
from textual.widgets import DataTable

Cell = str | Text
Row = tuple[str, Sequence[Cell]]
"""Its key, and its cells."""


class Table(DataTable[Cell]):
    """A `DataTable` with a row cursor; `show_rows` keeps the cursor on its key."""

    def __init__(self, columns: Sequence[str], *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(cursor_type="row", id=id, classes=classes, cell_padding=1)
        self.names = tuple(columns)
        self._rows: dict[str, tuple[str, ...]] = {}

    def on_mount(self) -> None:
        """The columns never change."""
        for name in self.names:
            self.add_column(name, key=name)

    @property
    def chosen(self) -> str:
        """Key of the row under the cursor; empty without rows."""
        if not self._rows or not self.is_valid_row_index(self.cursor_row):
            return ""
        return str(self.coordinate_to_cell_key(self.cursor_coordinate).row_key.value or "")

    def choose(self, key: str) -> bool:
        """Put the cursor on a row, or on the first of another generation of that name; -> whether there is one."""
        name = key.partition("#")[0]
        same = key if key in self._rows else next((row for row in self._rows if row.partition("#")[0] == name), None)
        if same is None:
            return False
        self.move_cursor(row=self.get_row_index(same), animate=False)
        return True

    def show_rows(self, rows: Sequence[Row]) -> None:
        """Show exactly these rows, in this order."""
        marked = {key: tuple(_mark(cell) for cell in cells) for key, cells in rows}
        if list(marked) == list(self._rows):
            for key, cells in rows:
                old = self._rows[key]
                for name, cell, before, after in zip(self.names, cells, old, marked[key], strict=True):
                    if before != after:
                        self.update_cell(key, name, cell, update_width=True)
        else:
            chosen, top = self.chosen, self.scroll_y
            self.clear()
            for key, cells in rows:
                self.add_row(*cells, key=key)
            self._rows = marked
            self.choose(chosen)
            self.scroll_y = top
        self._rows = marked


def _mark(cell: Cell) -> str:
    """What tells a cell from another: its text and how it is drawn."""
    return cell if isinstance(cell, str) else f"{cell.plain}\x00{cell.style}\x00{cell.spans}"
