"""The process between the agent and one container: sets up its file system, runs it, records how it ended.

Runs in a bare interpreter, so it uses the standard library only; or forked from a process that has imported the
container's program. It survives the agent, which finds it again by `started.json` and reads `exit.json`; it ends with
`owner_pid`, the test run, so that no process remains.

Usage: shim.py FOLDER, with `request.json` in it:
  argv, forked, environment, working_dir, log_path, owner_pid, root (an empty folder for the container's file system),
  read_only_root, mounts ([{source, target, read_only}]), hostname.
The first line of its standard output is `started.json`'s content, or {"error": ...} when the container cannot run.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import stat
import sys
import time

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
PR_SET_CHILD_SUBREAPER = 36
# A container's shared memory is 64 MiB unless it mounts more: the default of every container runtime.
SHARED_MEMORY = "size=64m,mode=1777"
_libc = ctypes.CDLL(None, use_errno=True)


def main(folder: str) -> None:
    """Detach from the agent, then run the container to its end."""
    with open(os.path.join(folder, "request.json"), encoding="utf-8") as file:  # noqa: PTH118, PTH123 - starts faster without
        request = json.load(file)
    # The agent waits for this process only; its grandchild has no parent, so that the agent can be restarted.
    if os.fork():
        os._exit(0)
    os.setsid()
    owner_fd = os.pidfd_open(request["owner_pid"])
    try:
        pid = start(request)
    except OSError as error:
        reply({"error": str(error)})
        return
    if pid == 0:
        run_imported(request)
        return
    started: dict[str, object] = {
        "shim_pid": os.getpid(),
        "shim_start_ticks": start_ticks(os.getpid()),
        "pid": pid,
        "pid_start_ticks": start_ticks(pid),
        "started_at": time.time(),
    }
    write(folder, "started.json", started)
    reply(started)
    status = wait(pid, owner_fd)
    end_descendants()
    code = os.waitstatus_to_exitcode(status)
    write(folder, "exit.json", {"exit_code": code if code >= 0 else 128 - code, "finished_at": time.time()})


def reply(message: dict[str, object]) -> None:
    """Reply to the agent, and close its pipe."""
    os.write(1, json.dumps(message).encode() + b"\n")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)


def start(request: dict[str, object]) -> int:
    """Start the container's main process; returns its pid, and 0 in it. Raises `OSError` when it cannot run."""
    check(_libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl(PR_SET_CHILD_SUBREAPER)")
    reading, writing = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            enter(request)
            if request["forked"]:
                os.close(writing)
                return 0
            argv, environment = request["argv"], request["environment"]
            assert isinstance(argv, list)
            assert isinstance(environment, dict)
            os.execvpe(argv[0], argv, environment)  # noqa: S606
        except BaseException as error:  # noqa: BLE001 - the parent reports any error
            os.write(writing, str(error).encode())
        os._exit(127)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        complaint = pipe.read()
    if complaint:
        os.waitpid(pid, 0)
        raise OSError(complaint.decode(errors="replace"))
    return pid


def run_imported(request: dict[str, object]) -> None:
    """Run the `python -m` of the container's command line with what this process has imported."""
    # Only a forked shim has the kit's modules.
    from kit.programs.fork_server import run  # noqa: PLC0415

    argv, environment = request["argv"], request["environment"]
    assert isinstance(argv, list)
    assert isinstance(environment, dict)
    os.closerange(3, 1 << 16)
    os.environ.clear()
    os.environ.update(environment)
    run(*argv[2:])


def enter(request: dict[str, object]) -> None:
    """Become the leader of a new session and process group, in the container's file system."""
    os.setsid()
    log = os.open(str(request["log_path"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    enter_root(request)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        os.chdir(str(request["working_dir"]))
    except FileNotFoundError:
        # A container runtime creates a missing working folder.
        os.makedirs(str(request["working_dir"]))  # noqa: PTH103
        os.chdir(str(request["working_dir"]))


def enter_root(request: dict[str, object]) -> None:
    """Give this process its own file system: the machine's, copy on write, with the container's mounts in it.

    Missing mount points are created in the copy, so nothing is written to the machine itself. The container may see
    old or new versions of files that the machine changes while it runs: use a volume for shared files.
    """
    mounts = request["mounts"]
    assert isinstance(mounts, list)
    check(_libc.unshare(CLONE_NEWNS | CLONE_NEWUTS), "unshare")
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    # Opened before the root changes: after it the same paths are copies. And after `unshare`: a mount of
    # another namespace cannot be bound.
    sources = [os.open(entry["source"], os.O_PATH | os.O_CLOEXEC) for entry in mounts]
    hostname = str(request["hostname"]).encode()
    check(_libc.sethostname(hostname, len(hostname)), "sethostname")
    enter_copy_of_machine(str(request["root"]))
    # Shorter paths first, so that a mount inside another one's folder is not hidden by it.
    for source, entry in sorted(zip(sources, mounts, strict=True), key=lambda pair: pair[1]["target"].count("/")):
        bind(source, entry["target"], read_only=entry["read_only"])
    if request["read_only_root"]:
        mount("none", "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY)


def enter_copy_of_machine(scratch: str) -> None:
    """Make the machine's file system, copy on write, the root; writes go to memory."""
    others = [point for point in mount_points() if point != "/"]
    mount("tmpfs", scratch, "tmpfs", 0, "mode=0755")
    root, upper, work = (f"{scratch}/{name}" for name in ("root", "upper", "work"))
    for path in (root, upper, work):
        os.mkdir(path)  # noqa: PTH102
    mount("overlay", root, "overlay", 0, f"lowerdir=/,upperdir={upper},workdir={work}")
    for point in others:
        # A mount point that another mount hides cannot be reached and is not needed.
        with contextlib.suppress(OSError):
            mount(point, root + point, None, MS_BIND)
    mount("tmpfs", f"{root}/dev/shm", "tmpfs", 0, SHARED_MEMORY)  # noqa: S108 - the container's own
    os.chroot(root)
    os.chdir("/")


def bind(source: int, target: str, *, read_only: bool) -> None:
    """Bind an open file or folder to a path of the present root; create the path."""
    is_folder = stat.S_ISDIR(os.fstat(source).st_mode)
    os.makedirs(target if is_folder else os.path.dirname(target), exist_ok=True)  # noqa: PTH103, PTH120
    if not is_folder and not os.path.exists(target):  # noqa: PTH110
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    mount(f"/proc/self/fd/{source}", target, None, MS_BIND | MS_REC)
    if read_only:
        mount("none", target, None, MS_REMOUNT | MS_BIND | MS_RDONLY)


def mount_points() -> list[str]:
    """Return every mount point, parents first."""
    with open("/proc/self/mountinfo", encoding="utf-8") as file:  # noqa: PTH123
        # Blanks are written as octal escapes.
        return [line.split()[4].encode().decode("unicode_escape") for line in file]


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """mount(2); raises `OSError` naming the target."""
    arguments = [None if text is None else text.encode() for text in (source, target, kind)]
    check(_libc.mount(*arguments, ctypes.c_ulong(flags), options.encode() if options else None), f"mount {target}")


def check(outcome: int, what: str) -> None:
    """Raise `OSError` when a C call failed."""
    if outcome != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def wait(pid: int, owner_fd: int) -> int:
    """Return the wait status of the main process; kills everything when the owner ends first."""
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(writing)
    # Without a handler the signal would wake no wait; do not consume a blocked SIGTERM of the session.
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    poll.register(owner_fd, select.POLLIN)
    while True:
        # As the subreaper this process inherits all orphans of the container.
        while (ended := reap()) is not None:
            if ended[0] == pid:
                return ended[1]
        ready = {descriptor for descriptor, _ in poll.poll()}
        if owner_fd in ready:
            end_descendants()
            os._exit(1)
        os.read(reading, 4096)


def reap() -> tuple[int, int] | None:
    """Return pid and wait status of a child that ended, or None."""
    try:
        ended, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (ended, status) if ended else None


def end_descendants() -> None:
    """SIGKILL all descendants of this process, also those in other sessions."""
    me = os.getpid()
    while children := [int(pid) for pid in children_of(me)]:
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        # Their children become children of the subreaper.
        for child in children:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child, 0)


def children_of(pid: int) -> list[str]:
    """Return the pids of a process' children."""
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:  # noqa: PTH123
        return file.read().split()


def start_ticks(pid: int) -> int:
    """Return when a process started, in clock ticks since boot: with the pid it identifies a process."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
        # The name in parentheses may contain anything, so fields are counted from its end.
        return int(file.read().rpartition(")")[2].split()[19])


def write(folder: str, name: str, content: dict[str, object]) -> None:
    """Write a file in one step."""
    path = os.path.join(folder, name)  # noqa: PTH118
    with open(f"{path}.new", "w", encoding="utf-8") as file:  # noqa: PTH123
        json.dump(content, file)
    os.replace(f"{path}.new", path)  # noqa: PTH105


if __name__ == "__main__":
    main(sys.argv[1])
