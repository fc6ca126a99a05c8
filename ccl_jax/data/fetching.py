"""Files from the web: many at a time, each within a deadline, from public addresses alone."""

import asyncio
import concurrent.futures
import dataclasses
import ipaddress
import random
import ssl
import threading
import weakref
from urllib.parse import urljoin, urlsplit

import aiohttp
import aiohttp.abc

from ccl_jax import __version__

USER_AGENT = f"Mozilla/5.0 (compatible; ccl_jax/{__version__}; image-text data set download)"

_CHUNK = 1 << 16
_MAX_REDIRECTS = 5
_RESOLVERS = 64
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
# Servers that store files often do not know what they store.
_UNTYPED = ("", "application/octet-stream", "binary/octet-stream")
_OPT_OUTS = frozenset({"noai", "noimageai"})
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class FetchError(Exception):
    """A file that could not be fetched.

    Attributes:
      reason: short and countable: "http 404", "timeout", "host not found", ...
      detail: what exactly went wrong, or "".
    """

    def __init__(self, reason: str, detail: str = "", *, transient: bool = False, wait: float = 0):
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason, self.detail = reason, detail
        self.transient, self.wait = transient, wait


@dataclasses.dataclass(frozen=True)
class FetchOptions:
    """How files are fetched.

    Attributes:
      connections: open at a time.
      per_host: of these, to one host.
      retries: further tries after a failure that may pass, with growing pauses.
      attempt_timeout: seconds of one try.
      deadline: seconds of all tries and pauses for a file.
      max_bytes: a larger file is given up.
      allow_private: fetch from private, loopback and link-local addresses too.
      user_agent: sent with each request; add an address that site owners can write to.
    """

    connections: int = 64
    per_host: int = 4
    retries: int = 2
    attempt_timeout: float = 15.0
    deadline: float = 60.0
    max_bytes: int = 20 << 20
    allow_private: bool = False
    user_agent: str = USER_AGENT

    def __post_init__(self):
        for name in ("connections", "per_host", "attempt_timeout", "deadline", "max_bytes"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.retries < 0:
            raise ValueError(f"retries must not be negative, got {self.retries}")


class Fetcher:
    """Fetches images by URL in a thread of its own."""

    def __init__(self, options: FetchOptions):
        self.options = options
        self._slots: weakref.WeakValueDictionary = weakref.WeakValueDictionary()
        self._loop = asyncio.new_event_loop()
        # Looking up a name can hang for half a minute: with few threads all would wait for it.
        self._resolvers = concurrent.futures.ThreadPoolExecutor(_RESOLVERS, "resolver")
        self._loop.set_default_executor(self._resolvers)
        self._session: aiohttp.ClientSession | None = None
        self._all_slots = asyncio.Semaphore(options.connections)
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def submit(self, url: str) -> "concurrent.futures.Future[bytes]":
        """Begins to fetch an image; the future gives its bytes or raises `FetchError`."""
        return asyncio.run_coroutine_threadsafe(self._fetch(url), self._loop)

    def close(self) -> None:
        """Gives up what is being fetched and closes all connections."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        # Not waited for: a name that is being looked up takes its time.
        self._resolvers.shutdown(wait=False, cancel_futures=True)

    async def _stop(self):
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def _fetch(self, url):
        try:
            host = _check_url(url, self.options.allow_private)
        except ValueError as error:
            raise FetchError("invalid url", str(error)) from error
        slot = self._slots.get(host)
        if slot is None:
            slot = self._slots[host] = asyncio.Semaphore(self.options.per_host)
        # Waiting for a turn does not count: a table may name one host throughout.
        async with slot, self._all_slots:
            try:
                async with asyncio.timeout(self.options.deadline):
                    return await self._try(url)
            except TimeoutError as error:
                raise FetchError("timeout", f"{self.options.deadline:g} s in all") from error

    async def _try(self, url):
        for attempt in range(self.options.retries + 1):
            try:
                return await self._attempt(url)
            except FetchError as error:
                if not error.transient or attempt == self.options.retries:
                    raise
                await asyncio.sleep(max(error.wait, 2**attempt * random.uniform(0.5, 1.0)))
        raise AssertionError("unreachable")

    async def _attempt(self, url):
        try:
            for _ in range(_MAX_REDIRECTS + 1):
                data, url = await self._request(url)
                if data is not None:
                    return data
                # The address of a redirect is as foreign as the first.
                _check_url(url, self.options.allow_private)
            raise FetchError("too many redirects", url)
        except aiohttp.ClientConnectorDNSError as error:
            if isinstance(error.os_error, _PrivateAddress):
                raise FetchError("private address", str(error.os_error)) from error
            raise FetchError("host not found", error.host, transient=True) from error
        except (aiohttp.InvalidURL, UnicodeError) as error:
            raise FetchError("invalid url", _line(error)) from error
        except (aiohttp.ClientSSLError, ssl.SSLError) as error:
            raise FetchError("tls failed", _line(error)) from error
        except TimeoutError as error:
            limit = f"{self.options.attempt_timeout:g} s"
            raise FetchError("timeout", limit, transient=True) from error
        except (aiohttp.ClientError, OSError) as error:
            raise FetchError("connection failed", _line(error), transient=True) from error
        except ValueError as error:
            raise FetchError("invalid url", _line(error)) from error

    async def _request(self, url):
        """(data, url), or (None, where the server says to look)."""
        timeout = aiohttp.ClientTimeout(total=self.options.attempt_timeout)
        session = self._open_session()
        async with session.get(url, allow_redirects=False, timeout=timeout) as response:
            headers = response.headers
            if response.status in (301, 302, 303, 307, 308) and headers.get("Location"):
                return None, urljoin(url, headers["Location"])
            if response.status != 200:
                raise FetchError(
                    f"http {response.status}",
                    transient=response.status in _TRANSIENT,
                    wait=_seconds(headers.get("Retry-After")),
                )
            self._check_headers(headers)
            data = bytearray()
            async for chunk in response.content.iter_chunked(_CHUNK):
                data += chunk
                if len(data) > self.options.max_bytes:
                    raise FetchError("too large", f"over {self.options.max_bytes} bytes")
            return bytes(data), url

    def _check_headers(self, headers):
        for value in headers.getall("X-Robots-Tag", ()):
            words = {word.rpartition(":")[2].strip().lower() for word in value.split(",")}
            if words & _OPT_OUTS:
                raise FetchError("opted out", f"X-Robots-Tag: {value}")
        kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if not kind.startswith("image/") and kind not in _UNTYPED:
            raise FetchError("not an image", kind)
        length = headers.get("Content-Length", "")
        if length.isdigit() and int(length) > self.options.max_bytes:
            raise FetchError("too large", f"{length} bytes, over {self.options.max_bytes}")

    def _open_session(self):
        if self._session is None:
            resolver = aiohttp.ThreadedResolver()
            if not self.options.allow_private:
                resolver = _PublicResolver()
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=self.options.connections, ttl_dns_cache=300, resolver=resolver
                ),
                headers={
                    "User-Agent": self.options.user_agent,
                    "Accept": "image/*,*/*;q=0.1",
                    "Accept-Encoding": "identity",
                },
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session


class _PrivateAddress(OSError):
    pass


class _PublicResolver(aiohttp.ThreadedResolver):
    """Gives public addresses alone.

    Checked here, where the address that is connected to comes from: a name may give another
    address each time it is asked for.
    """

    async def resolve(self, host, port=0, family=0):
        found = await super().resolve(host, port, family)
        public = [entry for entry in found if is_public(entry["host"])]
        if not public:
            raise _PrivateAddress(f"{host} is {found[0]['host']}")
        return public


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public Internet, also where it wraps an IPv4 one."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        if found in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)))
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo and found.teredo[1])
        if inner:
            return is_public(str(inner))
    return found.is_global and not found.is_multicast


def _check_url(url, allow_private):
    """The host of a URL that may be asked."""
    parts = urlsplit(url.strip())
    if parts.scheme not in ("http", "https"):
        raise FetchError("invalid url", f"neither http nor https: {url[:200]}")
    if not parts.hostname:
        raise FetchError("invalid url", f"no host: {url[:200]}")
    try:
        address = ipaddress.ip_address(parts.hostname.partition("%")[0])
    except ValueError:
        return parts.hostname  # a name; its addresses are checked when it is looked up
    if not allow_private and not is_public(str(address)):
        raise FetchError("private address", parts.hostname)
    return parts.hostname


def _seconds(value):
    """Retry-After in seconds; its other form, a date, is left to the usual pauses."""
    return float(value) if value and value.isascii() and value.isdigit() else 0.0


def _line(error):
    return " ".join(str(error).split())[:200] or type(error).__name__
