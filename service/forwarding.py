"""Names and paths by which callers reach the service: allowed hosts, the path prefix of a proxy, trusted proxies."""

import ipaddress
import re
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from models.errors import quoted
from service.errors import ForbiddenHostError

PEER_KEY = "maskserve.peer"  # in the `state` of a request's scope: the address that the connection comes from
PREFIX_KEY = (
    "maskserve.prefix"  # in a request's scope: the path prefix under which the caller sees the service, "" if none
)

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")

# Segments of a URL's path that are not empty: a prefix such as //example.org would be another host.
PATH_PREFIX_PATTERN = re.compile(r"(/[A-Za-z0-9._~!$&'()*+,;=:@%-]+)+")


class RootPathMiddleware:
    """Removes the root path from the path of a request, for proxies that keep it, and finds the prefix that the caller sees.

    The service also answers without the root path: probes and callers on the same network do not pass the proxy.
    """

    def __init__(self, app: ASGIApp, root_path: str, trusted_proxies: Collection[str]) -> None:
        """`root_path`: such as /tools/maskserve, or empty. `trusted_proxies`: addresses whose X-Forwarded-Prefix is used."""
        self.app = app
        self.root_path = root_path
        self.trusted_proxies = trusted_proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Process the request. Without its last slash, the root path redirects: the page has relative addresses."""
        path, root = scope["path"], self.root_path
        if root and path == root:
            await RedirectResponse(f"{root}/", 308)(scope, receive, send)
            return
        if root and path.startswith(f"{root}/"):
            path = path.removeprefix(root)
        prefix = self._forwarded_prefix(scope) or root
        await self.app({**scope, "path": path, PREFIX_KEY: prefix}, receive, send)

    def _forwarded_prefix(self, scope: Scope) -> str:
        value = Headers(scope=scope).get("x-forwarded-prefix", "").partition(",")[0].strip().rstrip("/")
        peer = scope.get("state", {}).get(PEER_KEY) or (scope.get("client") or ("",))[0]
        if value and PATH_PREFIX_PATTERN.fullmatch(value) and is_trusted_proxy(peer, self.trusted_proxies):
            return value
        return ""


def is_trusted_proxy(peer: str, trusted: Collection[str]) -> bool:
    """Whether an address is one of these addresses or networks; `*` is every address."""
    if "*" in trusted:
        return True
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:  # a Unix socket has no address
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return any(address in ipaddress.ip_network(network) for network in trusted)


def check_host(headers: Headers, allowed: Collection[str]) -> None:
    """Check the Host header, against DNS rebinding: a web page whose own name resolves to this machine's address.

    `allowed`: as `host_name` returns them; `*.example.org` is every name below it, and `*` every name. Those of the
    loopback are always allowed: nobody else can own them.
    Raises: ForbiddenHostError. A request without a Host (HTTP/1.0) comes from no browser and is allowed.
    """
    host = headers.get("host")
    if host is None or "*" in allowed:
        return
    name = host_name(host)
    allowed = dict.fromkeys([*LOOPBACK_HOSTS, *allowed])
    if name not in allowed and not any(entry.startswith("*.") and name.endswith(entry[1:]) for entry in allowed):
        raise ForbiddenHostError(
            f"The host {quoted(host[:100])} is not a name of this service. If it is, add it to MASKSERVE_ALLOWED_HOSTS. "
            f"Now it answers to {', '.join(allowed)}."
        )


def host_name(host: str) -> str:
    """The name or address in a Host header, in lower case, without port, brackets and final dot."""
    name = re.sub(r":\d*$", "", host.strip()) if host.count(":") == 1 or "]" in host else host.strip()
    return name.strip("[]").rstrip(".").lower()
