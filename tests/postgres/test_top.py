"""`pgweir top` in a real terminal against a real pgweir."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time

import pytest

from harness import eventually, lane
from harness.weir import BINARY

pytestmark = pytest.mark.weir

ALTERNATE_ON, ALTERNATE_OFF = "\x1b[?1049h", "\x1b[?1049l"


@pytest.fixture
def weir(make_weir):
    return make_weir(lanes=[lane("web", quota=5, priority=0), lane("cron", freeze=True), lane("other", default=True, quota=20)])


class Top:
    """The program in a pty of 80 by 24; what it has written so far."""

    def __init__(self, weir, columns=80, lines=24, **env):
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.process = subprocess.Popen([str(BINARY), "top", "--config", str(weir.config_file)], stdin=slave, stdout=slave, stderr=slave,
                                        start_new_session=True, env={**os.environ, "TERM": "xterm-256color", "LANG": "C.UTF-8", **env})
        self.text = ""

    def read(self, seconds=0.05):
        deadline = time.monotonic() + seconds
        while select.select([self.master], [], [], max(0, deadline - time.monotonic()))[0]:
            try:
                self.text += os.read(self.master, 65536).decode(errors="replace")
            except OSError:
                break
        return self.text

    def shows(self, *words, since=0):
        """Waits until all words were written behind `since`; where the writing stands then. Only what changes is written again, and of
        blanks nothing."""
        def there():
            self.read()
            plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.text[since:]).replace(" ", "")
            assert all(word.replace(" ", "") in plain for word in words), plain[-2000:]
            return True
        eventually(there, what=f"{words} on the screen")
        return len(self.text)

    def type(self, keys):
        os.write(self.master, keys.encode())

    def wait(self):
        def ended():
            self.read()
            return self.process.poll() is not None
        eventually(ended, what="the end of top")
        self.read(0.2)
        return self.process.returncode

    def is_restored(self):
        assert self.text.rfind(ALTERNATE_OFF) > self.text.rfind(ALTERNATE_ON) >= 0
        assert termios.tcgetattr(self.slave)[3] == self.before[3], "echo and line mode are back"
        return True

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(60)
        os.close(self.master)
        os.close(self.slave)


def test_a_lane_is_paused_and_resumed_by_keys(weir, tidy):
    top = tidy(Top(weir))
    at = top.shows("LANE", "web", "cron", "q quit")
    # The second lane.
    top.type("\x1b[B")
    top.type("p")
    at = top.shows("Pause lane cron", "Reason?", since=at)
    top.type("imports\r")
    at = top.shows("y or n?", since=at)
    assert weir.lane("cron")["state"] == "open"
    top.type("y")
    eventually(lambda: weir.lane("cron")["state"] == "paused")
    assert weir.lane("cron")["reason"].find("imports") >= 0 and weir.lane("cron")["paused_by"].startswith("admin")
    at = top.shows("is paused", since=at)
    top.type("r\r\ry")
    eventually(lambda: weir.lane("cron")["state"] == "open")
    top.type("q")
    assert top.wait() == 0 and top.is_restored()


def test_a_client_is_reset_by_keys(weir, tidy):
    raw = tidy(weir.raw("web"))
    raw.ok("begin")
    top = tidy(Top(weir))
    top.shows("LANE", "web")
    top.type("2")
    at = top.shows("idle_in_t")
    top.type("xstuck\r")
    top.shows("Reset client", "y or n?", since=at)
    top.type("y")
    eventually(lambda: weir.client("web")["state"] == "reset")
    eventually(lambda: weir.timeline_has("note", "stuck"))
    top.type("\x03")
    assert top.wait() == 0 and top.is_restored()


def test_it_says_when_pgweir_is_gone_and_comes_back(weir, tidy):
    top = tidy(Top(weir))
    at = top.shows("LANE", "web")
    weir.kill9()
    at = top.shows("NOT REACHED", since=at)
    weir.start()
    top.shows("OK: usage", since=at)
    top.type("q")
    assert top.wait() == 0


def test_it_says_when_pgweir_hangs(weir, tidy):
    top = tidy(Top(weir))
    at = top.shows("LANE", "web")
    weir.signal(signal.SIGSTOP)
    try:
        at = top.shows("NOT REACHED", "does not answer", since=at)
    finally:
        weir.signal(signal.SIGCONT)
    top.shows("OK: usage", since=at)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_restores_the_terminal(weir, tidy, number):
    top = tidy(Top(weir))
    top.shows("LANE", "web")
    top.process.send_signal(number)
    assert top.wait() == 0 and top.is_restored()


def test_without_colour_and_in_ascii(weir, tidy):
    top = tidy(Top(weir, NO_COLOR="1", LANG="C", LC_ALL="C"))
    top.shows("LANE", "web")
    assert not re.search(r"\x1b\[(3[0-7]|38;)", top.text)
    assert top.text.isascii()


def test_it_wants_a_terminal(weir):
    done = weir.cli("top")
    assert done.returncode == 2 and "terminal" in done.stderr
