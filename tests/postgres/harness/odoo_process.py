"""One process of Odoo's, with as many links as it likes. Run by harness.odoo_actors in a process of its own, with the system's Python and its
standard library only: what it is called, who it is and where it runs are what is tested.

It reads one JSON object a line from the socket ODOO_CHANNEL and answers each with one."""

import json
import os
import socket
import struct

SSL_REQUEST = struct.pack("!II", 8, 80877103)


class Link:
    """A connection that begins as libpq's does: over TCP an SSLRequest, then 3.0 with user, database and application_name."""

    def __init__(self, where, params):
        if "path" in where:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.connect(where["path"])
        else:
            self.sock = socket.create_connection((where["host"], where["port"]))
            self.sock.sendall(SSL_REQUEST)
            assert self.sock.recv(1) == b"N"
        self.sock.settimeout(60)
        self.stream = self.sock.makefile("rb")
        self.pid = None
        body = b"".join(part.encode() + b"\0" for pair in params.items() for part in pair) + b"\0"
        self.sock.sendall(struct.pack("!II", len(body) + 8, 196608) + body)

    def send(self, sql):
        """A simple Query."""
        body = sql.encode() + b"\0"
        self.sock.sendall(b"Q" + struct.pack("!I", len(body) + 4) + body)

    def receive(self, copy=""):
        """What comes up to ReadyForQuery, in short; `copy` answers a COPY FROM STDIN."""
        out = {"error": None, "tags": [], "rows": [], "status": None}
        while out["status"] is None:
            head = self.stream.read(5)
            if len(head) < 5:
                return {**out, "status": "closed"}
            body = self.stream.read(struct.unpack("!I", head[1:])[0] - 4)
            kind = head[:1]
            if kind == b"E":
                parts = [part.decode("utf-8", "replace") for part in body.split(b"\0") if part]
                out["error"] = {part[0]: part[1:] for part in parts}
            elif kind == b"K":
                (self.pid,) = struct.unpack_from("!i", body)
            elif kind == b"C":
                out["tags"].append(body[:-1].decode())
            elif kind == b"D":
                out["rows"].append(row(body))
            elif kind == b"G":
                data = copy.encode()
                self.sock.sendall(b"d" + struct.pack("!I", len(data) + 4) + data + b"c" + struct.pack("!I", 4))
            elif kind == b"Z":
                out["status"] = body.decode()
        return {**out, "pid": self.pid}

    def close(self):
        """Terminate, as psycopg2 does."""
        try:
            self.sock.sendall(b"X" + struct.pack("!I", 4))
        except OSError:
            pass
        self.stream.close()
        self.sock.close()


def row(body):
    """A DataRow's columns as text."""
    (count,), at, out = struct.unpack_from("!H", body), 2, []
    for _ in range(count):
        (size,) = struct.unpack_from("!i", body, at)
        at += 4
        out.append(None if size < 0 else body[at:at + size].decode())
        at += max(size, 0)
    return out


def obey(links, order):
    """Does one thing."""
    what, name = order["do"], order["link"]
    if what == "open":
        links[name] = Link(order["where"], order["params"])
        return links[name].receive()
    link = links[name]
    if what == "send":
        link.send(order["sql"])
        return {}
    if what == "receive":
        return link.receive(order.get("copy", ""))
    link.close()
    del links[name]
    return {}


def main():
    """Until the other end is closed."""
    channel = socket.socket(fileno=int(os.environ["ODOO_CHANNEL"])).makefile("rw")
    links = {}
    for line in channel:
        try:
            answer = obey(links, json.loads(line))
        except OSError as error:
            answer = {"error": {"C": "", "M": str(error)}, "status": "closed"}
        channel.write(json.dumps(answer) + "\n")
        channel.flush()


main()
