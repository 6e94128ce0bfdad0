"""The address of a server, as a topology may give it: http://HOST:PORT, and a path before all others at most."""

import ipaddress
import re

_LIKE_IPV4 = re.compile(r"[0-9.]+|[0-9]+.[0-9]+.[0-9]+.[0-9]+")
"""The second is what httpx takes for one."""
FORM = "write it as http://HOST:PORT"
_SCHEME = re.compile(r"https?://", re.IGNORECASE)
_URL = re.compile(
    r"(?P<scheme>https?)://"
    r"(?P<host>[a-z0-9_][a-z0-9_-]*(\.[a-z0-9_][a-z0-9_-]*)*|\[[0-9a-f:.]+\])"
    r"(:(?P<port>[0-9]{1,5}))?"
    r"(?P<path>(/[a-z0-9._~-]+)*)/?",
    re.IGNORECASE | re.ASCII,
)


def server_url(url: str) -> str:
    """The same address in one spelling: scheme and host in lower case, no slash at the end. Raises ValueError."""
    if "@" in url:  # what stands before it may be a password, and is not shown
        raise ValueError(f"...@{url.rpartition('@')[2]}: no user or password here: a key goes into api_key_env")
    if not _SCHEME.match(url):
        raise ValueError(f"{url!r} does not begin with http:// or https://: {FORM}")
    if not (parts := _URL.fullmatch(url)):
        raise ValueError(f"{url!r} is no address of a server: {FORM}, with a plain path behind it at most")
    host, port, path = parts["host"].lower(), parts["port"], parts["path"]
    if not _sound(host):
        raise ValueError(f"{url!r}: {host} is no IP address: {FORM}")
    if port and not 0 < int(port) < 1 << 16:
        raise ValueError(f"{url!r}: port {port} is not in 1 to 65535: {FORM}")
    if {".", ".."} & set(path.split("/")):
        raise ValueError(f"{url!r}: '.' and '..' are no parts of its path: {FORM}")
    return f"{parts['scheme'].lower()}://{host}{f':{int(port)}' if port else ''}{path}"


def _sound(host: str) -> bool:
    """Whether what looks like an IP address is one."""
    try:
        if host.startswith("["):
            ipaddress.IPv6Address(host[1:-1])
        elif _LIKE_IPV4.fullmatch(host):
            ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return True
