"""A client that speaks the wire protocol byte by byte, for what no driver would send."""

import hashlib
import os
import socket
import ssl
import struct
from typing import NamedTuple

SSL_REQUEST = struct.pack("!II", 8, 80877103)
GSSENC_REQUEST = struct.pack("!II", 8, 80877104)
MAX_MESSAGE = 1 << 30
# The suite over TLS: "client", "upstream" or "both" sides of pgweir. Tests of the plain start-up itself fail then.
TLS = os.environ.get("PGWEIR_TLS", "")


class ServerError(Exception):
    """An ErrorResponse where none was expected."""

    def __init__(self, fields):
        self.fields = fields
        self.sqlstate = fields.get("C")
        self.severity = fields.get("V") or fields.get("S")
        super().__init__(f"{self.severity} {self.sqlstate} {fields.get('M')} | {fields.get('D')} | {fields.get('H')}")


class Message(NamedTuple):
    """A message from the server: its type letter and body."""

    tag: str
    body: bytes

    @property
    def fields(self):
        """Fields of an ErrorResponse or NoticeResponse by letter."""
        out = {}
        for part in self.body.split(b"\0"):
            if part:
                out[chr(part[0])] = part[1:].decode("utf-8", "replace")
        return out

    @property
    def sqlstate(self):
        """SQLSTATE of an ErrorResponse."""
        return self.fields.get("C")

    @property
    def text(self):
        """A CommandComplete's tag, or a ReadyForQuery's status."""
        return self.body.rstrip(b"\0").decode("utf-8", "replace")

    @property
    def values(self):
        """Columns of a DataRow as text, None for NULL."""
        (n,) = struct.unpack_from("!H", self.body)
        at, out = 2, []
        for _ in range(n):
            (size,) = struct.unpack_from("!i", self.body, at)
            at += 4
            if size < 0:
                out.append(None)
            else:
                out.append(self.body[at:at + size].decode("utf-8", "replace"))
                at += size
        return out


def cstr(text):
    """A NUL-terminated string."""
    return (text if isinstance(text, bytes) else text.encode()) + b"\0"


def packet(tag, body=b""):
    """A message with its type letter and length."""
    return tag.encode() + struct.pack("!I", len(body) + 4) + body


def startup_packet(user, dbname, app="raw", protocol=(3, 0), **params):
    """A startup packet."""
    params = {"user": user, "database": dbname, **({"application_name": app} if app else {}), **params}
    body = b"".join(cstr(k) + cstr(v) for k, v in params.items()) + b"\0"
    return struct.pack("!IHH", len(body) + 8, *protocol) + body


def query(sql):
    """A simple Query."""
    return packet("Q", cstr(sql))


def parse(sql, name=""):
    """Parse."""
    return packet("P", cstr(name) + cstr(sql) + b"\0\0")


def bind(portal="", statement="", args=()):
    """Bind with text parameters and results."""
    body = cstr(portal) + cstr(statement) + struct.pack("!HH", 0, len(args))
    for arg in args:
        raw = str(arg).encode()
        body += struct.pack("!I", len(raw)) + raw
    return packet("B", body + b"\0\0")


def execute(portal="", rows=0):
    """Execute."""
    return packet("E", cstr(portal) + struct.pack("!I", rows))


def describe(kind="P", name=""):
    """Describe."""
    return packet("D", kind.encode() + cstr(name))


def close(kind="S", name=""):
    """Close."""
    return packet("C", kind.encode() + cstr(name))


SYNC = packet("S")
FLUSH = packet("H")
TERMINATE = packet("X")
COPY_DONE = packet("c")


def extended(sql, name="", args=(), sync=True):
    """Parse, Bind, Execute and, by default, Sync."""
    return parse(sql, name) + bind("", name, args) + execute() + (SYNC if sync else b"")


class RawClient:
    """A socket and the messages on it. Nothing happens by itself: call `startup`, then send and receive."""

    def __init__(self, port=None, host="127.0.0.1", path=None, timeout=30, rcvbuf=None, tls=None):
        if path:
            self.sock = socket.socket(socket.AF_UNIX)
            address = path
        else:
            self.sock = socket.socket(socket.AF_INET)
            address = (host, port)
        if rcvbuf:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        self.sock.settimeout(timeout)
        self.sock.connect(address)
        if not path:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.address = address
        self.buffer = bytearray()
        self.params = {}
        self.pid = None
        self.key = b""
        self.negotiated = None
        self.status = None
        if tls or (tls is None and TLS in ("client", "both") and not path):
            self.start_tls(None if tls is True else tls)

    def start_tls(self, context=None, direct=False, **more):
        """Goes on with TLS: after an SSLRequest, or directly."""
        if context is None:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if not direct:
            self.sock.sendall(SSL_REQUEST)
            answer = self.sock.recv(1)
            assert answer == b"S", answer
        self.sock = context.wrap_socket(self.sock, **more)
        return self

    # -- bytes ---------------------------------------------------------------------------------------------------

    def send(self, *parts):
        """Sends bytes as one write."""
        self.sock.sendall(b"".join(parts))

    def read_exact(self, n):
        """Exactly `n` bytes; EOFError when the stream ends before."""
        while len(self.buffer) < n:
            try:
                chunk = self.sock.recv(1 << 16)
            except ConnectionResetError as error:
                raise EOFError("connection reset") from error
            if not chunk:
                raise EOFError("connection closed")
            self.buffer += chunk
        out = bytes(self.buffer[:n])
        del self.buffer[:n]
        return out

    def at_eof(self, timeout=30):
        """Whether the stream ends within `timeout` seconds; what still comes is dropped."""
        self.sock.settimeout(timeout)
        try:
            while self.sock.recv(1 << 16):
                pass
            return True
        except (ConnectionResetError, BrokenPipeError):
            return True
        except TimeoutError:
            return False

    def quiet(self, seconds=0.3):
        """Whether nothing at all arrives for `seconds`."""
        if self.buffer:
            return False
        self.sock.settimeout(seconds)
        try:
            self.buffer += self.sock.recv(1 << 16)
            return False
        except TimeoutError:
            return True
        finally:
            self.sock.settimeout(30)

    # -- messages ------------------------------------------------------------------------------------------------

    def receive(self):
        """The next message."""
        head = self.read_exact(5)
        size = struct.unpack("!I", head[1:])[0]
        assert 4 <= size <= MAX_MESSAGE, f"no message: {head!r}"
        message = Message(chr(head[0]), self.read_exact(size - 4))
        if message.tag == "S":
            name, value = message.body.split(b"\0")[:2]
            self.params[name.decode()] = value.decode()
        elif message.tag == "K":
            (self.pid,) = struct.unpack_from("!i", message.body)
            self.key = message.body[4:]
        elif message.tag == "v":
            self.negotiated = message.body
        elif message.tag == "Z":
            self.status = message.body.decode()
        return message

    def until(self, *tags):
        """Messages up to and including the first with one of these type letters."""
        out = []
        while True:
            out.append(self.receive())
            if out[-1].tag in tags:
                return out

    def startup(self, user="odoo", dbname="postgres", password=None, app="raw", protocol=(3, 0), **params):
        """Logs in by trust, password or md5, up to ReadyForQuery; ServerError when refused."""
        self.send(startup_packet(user, dbname, app, protocol, **params))
        return self.login(user, password)

    def login(self, user="odoo", password=None):
        """What follows a startup packet."""
        seen = []
        while True:
            message = self.receive()
            seen.append(message)
            if message.tag == "E":
                raise ServerError(message.fields)
            if message.tag == "Z":
                return seen
            if message.tag == "R":
                (kind,) = struct.unpack_from("!I", message.body)
                if kind == 3:
                    self.send(packet("p", cstr(password)))
                elif kind == 5:
                    inner = hashlib.md5(password.encode() + user.encode()).hexdigest()
                    digest = hashlib.md5(inner.encode() + message.body[4:8]).hexdigest()
                    self.send(packet("p", cstr("md5" + digest)))
                elif kind != 0:
                    raise AssertionError(f"authentication request {kind} is beyond this client")

    def query(self, sql):
        """Sends a simple Query; its messages up to ReadyForQuery."""
        self.send(query(sql))
        return self.until("Z")

    def ask(self, *parts):
        """Sends messages; the replies up to ReadyForQuery."""
        self.send(*parts)
        return self.until("Z")

    def ok(self, sql):
        """Runs a statement that must succeed; its rows."""
        seen = self.query(sql)
        for message in seen:
            if message.tag == "E":
                raise ServerError(message.fields)
        return [m.values for m in seen if m.tag == "D"]

    def error(self):
        """The next message but notices and parameters, which must be an ErrorResponse; its fields."""
        while True:
            message = self.receive()
            if message.tag not in "NSA":
                break
        assert message.tag == "E", message
        return message.fields

    def cancel(self, pid=None, key=None, wait=True, port=None):
        """Sends a CancelRequest over a connection of its own, and waits for its end as libpq does."""
        pid = self.pid if pid is None else pid
        key = self.key if key is None else key
        other = RawClient(port) if port else RawClient(path=self.address) if isinstance(self.address, str) \
            else RawClient(self.address[1])
        other.send(struct.pack("!IIi", 12 + len(key), 80877102, pid) + key)
        if wait:
            assert other.at_eof(15), "a cancel connection must be closed by the server"
        other.close()

    # -- ends ----------------------------------------------------------------------------------------------------

    def half_close(self):
        """Closes the sending side only."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self):
        """Closes with RST; not while another thread reads, whose system call would keep the socket open."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self):
        """Closes with FIN, without Terminate; a thread that reads is woken."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def states(messages):
    """What the replies say, short: [('E', '40001'), ('C', 'SELECT 1'), ('Z', 'I')]."""
    out = []
    for m in messages:
        if m.tag == "E":
            out.append(("E", m.sqlstate))
        elif m.tag in "CZ":
            out.append((m.tag, m.text))
    return out
