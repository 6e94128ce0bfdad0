"""TCP ports of this machine."""

import socket


def free_port() -> int:
    """One at which nobody listens now, at none of its addresses; only whoever binds it at once can be sure of it."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        port: int = listener.getsockname()[1]
        return port
