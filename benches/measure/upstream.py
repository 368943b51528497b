"""A PostgreSQL that is none: it lets everybody in and answers every Query with one row, so that thousands of links cost no
backends. Run as a process of its own: `python upstream.py PORT`."""

import asyncio
import struct
import sys

PARAMETERS = {
    "application_name": "", "client_encoding": "UTF8", "DateStyle": "ISO, MDY", "default_transaction_read_only": "off",
    "in_hot_standby": "off", "integer_datetimes": "on", "IntervalStyle": "postgres", "is_superuser": "off",
    "server_encoding": "UTF8", "server_version": "15.0", "session_authorization": "odoo",
    "standard_conforming_strings": "on", "TimeZone": "UTC",
}
SSL, GSS, CANCEL = 80877103, 80877104, 80877102
# Above Linux's greatest pid, so that none of these is also a process.
PID_FIRST = 10_000_000


def message(tag, body):
    """A message with its type letter and length."""
    return tag + struct.pack("!I", len(body) + 4) + body


WELCOME = message(b"R", struct.pack("!I", 0)) + b"".join(
    message(b"S", f"{name}\0{value}\0".encode()) for name, value in PARAMETERS.items())
ROW = (message(b"T", struct.pack("!H", 1) + b"abalance\0" + struct.pack("!IHIhih", 0, 0, 23, 4, -1, 0))
       + message(b"D", struct.pack("!HI", 1, 1) + b"1") + message(b"C", b"SELECT 1\0"))


class Backend(asyncio.Protocol):
    """One connection."""

    count = PID_FIRST

    def connection_made(self, transport):
        self.transport = transport
        self.buffer = b""
        self.started = False
        self.status = b"I"

    def data_received(self, data):
        self.buffer += data
        out = []
        while not self.started and len(self.buffer) >= 8:
            size, code = struct.unpack_from("!II", self.buffer)
            if len(self.buffer) < size:
                break
            self.buffer = self.buffer[size:]
            self.startup(code, out)
        while self.started and len(self.buffer) >= 5:
            size = 1 + struct.unpack_from("!I", self.buffer, 1)[0]
            if len(self.buffer) < size:
                break
            self.request(self.buffer[:1], self.buffer[5:size].rstrip(b"\0"), out)
            self.buffer = self.buffer[size:]
        if out:
            self.transport.write(b"".join(out))

    def startup(self, code, out):
        if code in (SSL, GSS):
            out.append(b"N")
        elif code == CANCEL:
            self.transport.close()
        else:
            self.started = True
            Backend.count += 1
            out += [WELCOME, message(b"K", struct.pack("!II", Backend.count, 1)), message(b"Z", b"I")]

    def request(self, tag, body, out):
        if tag == b"X":
            self.transport.close()
        elif tag == b"Q":
            word = body.split(None, 1)[0].upper().rstrip(b";") if body.strip() else b""
            if word in (b"SELECT", b"SHOW"):
                out.append(ROW)
            else:
                self.status = {b"BEGIN": b"T", b"COMMIT": b"I", b"ROLLBACK": b"I"}.get(word, self.status)
                out.append(message(b"C", (b"DISCARD ALL" if word == b"DISCARD" else word) + b"\0"))
            out.append(message(b"Z", self.status))


async def serve(port):
    """Listens until killed."""
    server = await asyncio.get_running_loop().create_server(Backend, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
