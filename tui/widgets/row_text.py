"""The row under the cursor of a table as text, for the clipboard."""

from textual.widget import Widget

from midflight.tui.widgets.table import Table


def row_text(widget: Widget | None) -> str:
    """Its cells, tab separated; empty when this is no table, or has no row."""
    if not isinstance(widget, Table) or not widget.is_valid_row_index(widget.cursor_row):
        return ""
    return "\t".join(str(cell).strip() for cell in widget.get_row_at(widget.cursor_row)).strip()
