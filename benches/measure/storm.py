"""A connect storm at a fixed rate, and a listener that does nothing but refuse, as its control. Each runs as a process of its own:
`python storm.py storm PORT APPLICATION RATE SECONDS`, which waits for a line on its input, and `python storm.py listen`."""

import json
import pathlib
import select
import socket
import struct
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tests" / "postgres"))

SQLSTATE = b"C53300\0"
# More in flight than this means that nobody answers: the storm holds back, and misses its rate.
IN_FLIGHT_MAX = 1000
# How long answers are waited for after the last connect.
GRACE_S = 2.0
# Closing sends RST: sockets of a storm must not pile up in TIME_WAIT.
LINGER = struct.pack("ii", 1, 0)
REFUSAL_BYTES = 200


class Missed(RuntimeError):
    """The storm was not the one asked for."""


class Storm:
    """A storm of several generator processes, ready to begin: `go()`, then `result()`."""

    def __init__(self, port, application, rate, seconds, processes):
        argv = [sys.executable, __file__, "storm", str(port), application, str(rate / processes), str(seconds)]
        self.rate = rate
        self.children = [subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
        for child in self.children:
            assert child.stdout.readline() == "ready\n"

    def go(self):
        """Begins."""
        for child in self.children:
            child.stdin.write("go\n")
            child.stdin.flush()

    def result(self):
        """Waits for the end: refusals per second, their median and p99 in ms. Missed if they were too few or others."""
        found = [json.loads(child.communicate(timeout=600)[0]) for child in self.children]
        took = sorted(ms for one in found for ms in one["took_ms"])
        other = [what for one in found for what in one["other"]]
        rate = sum(len(one["took_ms"]) / one["seconds"] for one in found)
        if other:
            raise Missed(f"{len(other)} connects of the storm were not refused by SQLSTATE 53300, the first: {other[0]}")
        if rate < 0.97 * self.rate:
            raise Missed(f"the storm reached {rate:.0f} connects/s of {self.rate}: this machine is too slow for it, or too busy")
        return {"rate": rate, "p50_ms": took[len(took) // 2], "p99_ms": took[len(took) * 99 // 100]}

    def close(self):
        """Ends what still runs."""
        for child in self.children:
            if child.poll() is None:
                child.kill()
                child.wait(10)


class Listener:
    """The control: accepts, reads, refuses, closes."""

    def start(self):
        """Starts it; itself."""
        self.process = subprocess.Popen([sys.executable, __file__, "listen"], stdout=subprocess.PIPE, text=True)
        self.port = int(self.process.stdout.readline())
        return self

    def close(self):
        """Ends it."""
        self.process.kill()
        self.process.wait(10)


class Connects:
    """The generator's sockets. Nothing blocks: whoever is slow is not waited for, the schedule goes on."""

    def __init__(self, port, packet):
        self.address = ("127.0.0.1", port)
        self.packet = packet
        self.poller = select.epoll()
        self.flying = {}
        self.took_ms = []
        self.other = []

    def launch(self):
        """One connect. On the loopback the handshake is over when connect returns, so that the packet can go at once."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
        began = time.monotonic()
        sock.connect_ex(self.address)
        self.flying[sock.fileno()] = (sock, began)
        self.poller.register(sock.fileno(), select.EPOLLIN if self.sent(sock) else select.EPOLLIN | select.EPOLLOUT)

    def sent(self, sock):
        """Whether the packet has gone."""
        try:
            sock.send(self.packet)
            return True
        except BlockingIOError:
            return False
        except OSError:
            # Refused or reset: the next read says so.
            return True

    def poll(self, seconds):
        """Takes the answers that have come."""
        for fd, event in self.poller.poll(seconds):
            sock, began = self.flying[fd]
            if event & select.EPOLLOUT and not event & select.EPOLLIN:
                if self.sent(sock):
                    self.poller.modify(fd, select.EPOLLIN)
                continue
            try:
                answer = sock.recv(4096)
            except OSError as error:
                answer = repr(error).encode()
            if answer[:1] == b"E" and SQLSTATE in answer:
                self.took_ms.append((time.monotonic() - began) * 1000)
            else:
                self.other.append(repr(answer[:200]))
            del self.flying[fd]
            sock.close()


def storm(port, application, rate, seconds):
    """Connects at that rate; prints what came of it as JSON."""
    from harness.wire import startup_packet
    connects = Connects(port, startup_packet("odoo", "bench", application))
    print("ready", flush=True)
    sys.stdin.readline()
    total, count = round(rate * seconds), 0
    began = now = time.monotonic()
    while count < total or connects.flying and now < began + seconds + GRACE_S:
        due = min(total, int((now - began) * rate) + 1)
        while count < due and len(connects.flying) < IN_FLIGHT_MAX:
            connects.launch()
            count += 1
        if now > began + 3 * seconds + GRACE_S:
            break
        connects.poll(min(0.05, max(0.0, began + count / rate - time.monotonic())) if count < total else 0.05)
        now = time.monotonic()
    connects.other += ["no answer"] * len(connects.flying)
    took = max(seconds, time.monotonic() - began)
    print(json.dumps({"seconds": took, "took_ms": connects.took_ms, "other": connects.other}))


def listen():
    """Refuses everybody, with as many bytes as pgweir does, until killed."""
    from harness.wire import packet
    fields = b"SFATAL\0VFATAL\0" + SQLSTATE + b"M"
    refusal = packet("E", fields + b"x" * (REFUSAL_BYTES - len(fields)) + b"\0\0")
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as server:
        # Inherited by what it accepts: a client that never speaks is not waited for.
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 1, 0))
        print(server.getsockname()[1], flush=True)
        while True:
            try:
                sock = server.accept()[0]
            except BlockingIOError:
                continue
            with sock:
                try:
                    if sock.recv(4096):
                        sock.send(refusal)
                except OSError:
                    pass


if __name__ == "__main__":
    if sys.argv[1] == "listen":
        listen()
    else:
        storm(int(sys.argv[2]), sys.argv[3], float(sys.argv[4]), float(sys.argv[5]))
