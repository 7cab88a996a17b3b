"""Images of a request: data URLs, and addresses on hosts that were allowed by name.

An address is looked up once, every address behind the name is checked, and the connection goes to the checked one: a
name that answers differently the second time (DNS rebinding) gains nothing. Redirects go the same way. No proxy is
used, nothing a client says is opened as a path, and messages do not repeat addresses.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from urllib.parse import SplitResult, urljoin, urlsplit

__all__ = ["MediaReader", "is_public_address"]

_MAX_REDIRECTS = 3
_REDIRECTS = (301, 302, 303, 307, 308)
#: Addresses of IPv4 inside IPv6: NAT64, 6to4.
_EMBEDDING = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("2002::/16"))


def is_public_address(text: str) -> bool:
    """Whether an IP address is one of the open internet: not private, loopback, link-local (which metadata services
    have), multicast or reserved, nor such a one inside an IPv6 address.
    """
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        elif any(address in network for network in _EMBEDDING):
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


@dataclass(frozen=True)
class MediaReader:
    """Reads the bytes of images that a client names.

    Attributes:
        hosts: Names from which http and https addresses are read, exactly as they stand in the address; with a port
            (``host:8443``) where it is not that of the scheme.
        max_bytes: Most bytes of an image.
        timeout_s: Seconds that a download has, redirects included.
        is_allowed_address: Whether an IP address may be connected to.
    """

    hosts: Collection[str] = ()
    max_bytes: int = 20 * 2**20
    timeout_s: float = 10.0
    is_allowed_address: Callable[[str], bool] = is_public_address

    def read(self, url: str) -> bytes:
        """Read an image's bytes.

        Raises:
            ValueError: Not a data URL nor an allowed address, too large, or no answer; the message does not repeat it.
        """
        if url[:5].lower() == "data:":
            return self._decode(url)
        try:
            parts = urlsplit(url)
            is_web = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            is_web = False
        if not is_web:
            raise ValueError("expected an image as data:image/...;base64,..., got no data URL. Encode it as base64.")
        deadline = time.monotonic() + self.timeout_s
        try:
            for _ in range(_MAX_REDIRECTS + 1):
                url, content = self._request(url, deadline)
                if content is not None:
                    return content
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            raise ValueError(
                f"expected an image at the address given, got no answer ({type(error).__name__}). Send a data URL."
            ) from error
        raise ValueError(f"expected at most {_MAX_REDIRECTS} redirects, got more. Name the last address.")

    def _decode(self, url: str) -> bytes:
        header, comma, payload = url.partition(",")
        if not comma or not header.lower().endswith(";base64"):
            raise ValueError("expected data:image/...;base64,..., got another data URL. Encode the image as base64.")
        if len(payload) > (self.max_bytes + 2) // 3 * 4:
            raise ValueError(f"expected an image of at most {self.max_bytes} bytes, got more. Shrink it.")
        try:
            return base64.b64decode(payload, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError("expected base64 after the comma of a data URL, got something else.") from error

    def _request(self, url: str, deadline: float) -> tuple[str, bytes | None]:
        """The content at an address; or the next address, and None."""
        parts = urlsplit(url)
        address, port = self._find_address(parts)
        connection = http.client.HTTPConnection(parts.hostname, port)
        connection.sock = sock = _connect(parts, address, port, _count_left(deadline))
        try:
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            host = parts.netloc.rpartition("@")[2]
            connection.request("GET", path, headers={"Host": host, "User-Agent": "moai-vlm", "Accept": "image/*"})
            reply = connection.getresponse()
            if reply.status in _REDIRECTS and (target := reply.getheader("Location")):
                return urljoin(url, target), None
            if reply.status != 200:
                raise ValueError(f"expected an image at the address given, got status {reply.status}. Check it.")
            content = bytearray()
            while True:
                sock.settimeout(_count_left(deadline))
                if not (piece := reply.read1(2**16)):
                    break
                content += piece
                if len(content) > self.max_bytes:
                    raise ValueError(f"expected an image of at most {self.max_bytes} bytes, got more. Shrink it.")
            return url, bytes(content)
        finally:
            connection.close()

    def _find_address(self, parts: SplitResult) -> tuple[str, int]:
        """The checked IP address and the port of an address.

        Raises:
            ValueError: The host was not allowed, or is not a public one.
        """
        usual = {"http": 80, "https": 443}
        host = (parts.hostname or "").lower().rstrip(".")
        try:
            port = parts.port or usual.get(parts.scheme, 0)
        except ValueError:  # its message would repeat the address
            port = 0
        name = host if port == usual.get(parts.scheme) else f"{host}:{port}"
        if parts.scheme not in usual or name not in {each.lower() for each in self.hosts}:
            raise ValueError(
                "expected an image as a data URL, or on a host that this server was started with (--allow-media-host), "
                "got another address. Send it as data:image/...;base64,..."
            )
        found = [entry[4][0] for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        if not found or not all(self.is_allowed_address(address) for address in found):
            raise ValueError("expected an image on a public host, got one inside a network. Send it as a data URL.")
        return found[0], port


def _count_left(deadline: float) -> float:
    """Seconds that are left.

    Raises:
        TimeoutError: None.
    """
    if (left := deadline - time.monotonic()) <= 0:
        raise TimeoutError("no time is left")
    return left


def _connect(parts: SplitResult, address: str, port: int, timeout_s: float) -> socket.socket:
    """A connection to an IP address, under the host's name."""
    sock = socket.create_connection((address, port), timeout_s)
    if parts.scheme != "https":
        return sock
    try:
        return ssl.create_default_context().wrap_socket(sock, server_hostname=parts.hostname)
    except BaseException:
        sock.close()
        raise
