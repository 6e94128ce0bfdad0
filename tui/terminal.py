"""Textual's Linux terminal, mended where a stop that cannot be caught (SIGSTOP) is followed by SIGCONT."""

import asyncio
from typing import Any

from textual.driver import Driver
from textual.drivers.linux_driver import LinuxDriver


class Terminal(LinuxDriver):
    """Comes back from any stop with one thread that reads the keys.

    Textual 8 starts a second one at a SIGCONT without a SIGTSTP before it: the two steal keys from one another, and
    the end waits for ever for the one that was late.
    """

    def _sigcont_application(self, *_: Any) -> None:
        """From the loop and not from the signal, which may have come while the queue it writes to was locked."""
        if self._auto_restart:
            asyncio.get_running_loop().call_soon_threadsafe(self.resume_application_mode)

    def resume_application_mode(self) -> None:
        """Take up the terminal again, also when nobody said that it was laid down."""
        if self._key_thread is not None and self._key_thread.is_alive():
            self.suspend_application_mode()
            self._must_signal_resume = True
        super().resume_application_mode()


def mended(driver: type[Driver]) -> type[Driver]:
    """What is used for a driver that Textual chose: this one for its own, another (a browser's) as it is."""
    return Terminal if driver is LinuxDriver else driver
