"""Which addresses a download may come from, redirections included."""

from __future__ import annotations

import re
import urllib.request
from urllib.parse import urlsplit

from tsm_jax.errors import UserError

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def check_address(url: str, first_url: str) -> None:
    """https, or http to this machine if that was what the user asked for.

    A server must not send us to another scheme: `file:` would read from this machine.
    """
    scheme, host = _scheme_and_host(url)
    if scheme == "https" and host:
        return
    if (scheme, host in _LOOPBACK) == ("http", True):
        first_scheme, first_host = _scheme_and_host(first_url)
        if first_scheme == "http" and first_host in _LOOPBACK:
            return
    how = "" if url == first_url else f"{first_url} leads to "
    raise UserError(f"{how}{url!a}: not an https address; download the file yourself")


def _scheme_and_host(url: str) -> tuple[str, str | None]:
    if not re.fullmatch(r"[!-~]+", url):  # a space or an umlaut would break the request
        return "", None
    try:
        parts = urlsplit(url)
        return parts.scheme, parts.hostname
    except ValueError:  # a malformed IPv6 address
        return "", None


class _CheckedRedirect(urllib.request.HTTPRedirectHandler):
    def __init__(self, first_url: str):
        self._first_url = first_url

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        check_address(newurl, self._first_url)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def make_opener(url: str) -> urllib.request.OpenerDirector:
    """Speaks http and https only; the standard one would read `file:`, `ftp:` and `data:` too."""
    opener = urllib.request.OpenerDirector()
    if _scheme_and_host(url)[1] not in _LOOPBACK:
        opener.add_handler(urllib.request.ProxyHandler())
    opener.add_handler(urllib.request.HTTPHandler())
    opener.add_handler(urllib.request.HTTPSHandler())
    opener.add_handler(_CheckedRedirect(url))
    opener.add_handler(urllib.request.HTTPErrorProcessor())
    opener.add_handler(urllib.request.HTTPDefaultErrorHandler())
    return opener
