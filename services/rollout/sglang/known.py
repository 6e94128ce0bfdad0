"""The URLs at which this run has found SGLang: what is gone there died, and what never was there is a mistake.

They are kept in a file, because the service that a dead server takes with it starts again and must not take that for a
mistake of the user's.
"""

from pathlib import Path

from midflight.kernel.mistake import UserMistake

from .client import Garbled, Gone, Refused
from .life import OLDEST
from .reply import BadReply

REMEDY = f"start SGLang {OLDEST} or newer there, or correct `urls`"


class Known:
    """`file` has one URL a line."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._urls = set(file.read_text().split()) if file.exists() else set()

    def __contains__(self, url: str) -> bool:
        return url in self._urls

    def add(self, url: str) -> None:
        """There is SGLang, or was."""
        if url not in self._urls:
            self._urls.add(url)
            with self._file.open("a") as file:
                file.write(f"{url}\n")

    def reason(self, url: str, error: Exception, *, greeted: bool) -> str:
        """Why there is no server now; greeted: it is one of SGLang, which is not ready.

        Raises UserMistake where something else has answered, and SGLang never did.
        """
        why = str(error) or "not ready in time"
        if url in self._urls:
            return why
        what = why.removeprefix(url)
        if isinstance(error, BadReply) or (isinstance(error, Refused) and error.status < 500):
            raise UserMistake(f"sglang: {url} is not an SGLang server: {what} - {REMEDY}") from error
        if greeted:
            self.add(url)
            return why
        silent = isinstance(error, Gone | TimeoutError) and not isinstance(error, Garbled)
        return f"nobody answers at {url}: {what}" if silent else f"{url} is not an SGLang server: {what}"
