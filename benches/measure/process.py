"""What a running process costs: CPU time, system calls, resident memory. All from /proc and perf, nothing from the process."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import time


# CPUCLOCK_SCHED of linux/posix-timers.h: a process's clock is made of its pid and this (clock_getcpuclockid(3)).
CPU_CLOCK = 2


def cpu_ns(pid):
    """CPU time of all threads so far in ns, the kernel's work for them and threads that ended included. ProcessLookupError where it is gone."""
    try:
        return time.clock_gettime_ns(~int(pid) << 3 | CPU_CLOCK)
    except OSError as error:
        raise ProcessLookupError(pid) from error


def move(pid, core):
    """Has all threads run on one core."""
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {core})


def thread_ns(pid, thread):
    """CPU time of one thread so far in ns."""
    return int(pathlib.Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()[0])


def resident_bytes(pid):
    """Resident memory now. smaps_rollup walks the pages; VmRSS is a batched counter that lags by megabytes."""
    for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no Rss of {pid}")


class SystemCalls:
    """Counts the system calls of a process in a with block; `count` afterwards. perf where it may, else strace, which slows."""

    def __init__(self, pid):
        self.pid = pid
        self.count = 0
        self.tool = counter()

    def __enter__(self):
        self.file = tempfile.NamedTemporaryFile(mode="r", suffix=".calls")
        if self.tool == "perf":
            argv = ["perf", "stat", "-x,", "-e", "raw_syscalls:sys_enter", "-o", self.file.name, "-p", str(self.pid)]
        else:
            argv = ["strace", "-f", "-qq", "-c", "-U", "calls,name", "-o", self.file.name, "-p", str(self.pid)]
        self.process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(0.3)
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGINT)
        self.process.wait(20)
        text = pathlib.Path(self.file.name).read_text()
        self.file.close()
        pattern = r"^(\d+),.*raw_syscalls" if self.tool == "perf" else r"^\s*(\d+)\s+total"
        found = re.search(pattern, text, re.MULTILINE)
        self.count = int(found[1]) if found else 0


def counter(_known=[]):  # noqa: B006 - asked of the system once
    """"perf" if it may count system calls here, else "strace"."""
    if not _known:
        usable = False
        if shutil.which("perf"):
            probe = subprocess.run(["perf", "stat", "-x,", "-e", "raw_syscalls:sys_enter", "true"], capture_output=True, text=True)
            usable = bool(re.search(r"^\d+,.*raw_syscalls", probe.stderr, re.MULTILINE))
        _known.append("perf" if usable else "strace")
    return _known[0]
