"""Set up the lab's Python environment once, then run a command in it.

    python lab.py          says what the commands are
    python lab.py run      fine-tunes, merges, checks and talks to a model

Standard library only, and written so that an unsupported Python can still parse it and say so.
"""

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence, Tuple

ROOT = Path(__file__).resolve().parent
COMMANDS = ("run", "test", "notebooks", "chat", "serve", "plan", "doctor")
OLDEST, NEWEST = (3, 11), (3, 13)
# The package index's own torch is the CUDA build on Linux (gigabytes) and the CPU build on Windows.
TORCH_INDEX = {
    "cpu": "https://download.pytorch.org/whl/cpu",
    "windows": "https://download.pytorch.org/whl/cu128",
}
STAMP = "finelab-lock.json"
STAMP_NEW = STAMP + ".new"
LOG = "install.log"
GUARD = "install.lock"
NO_NETWORK = re.compile(
    r"NewConnectionError|ConnectTimeout|ReadTimeout|ProxyError|ConnectionError|ConnectionReset"
    r"|name resolution|getaddrinfo|Network is unreachable",
    re.IGNORECASE,
)
NO_DISK = re.compile(r"No space left|not enough space|Disk quota exceeded", re.IGNORECASE)
LONG_PATH = re.compile(r"Windows Long Path")  # in a hint of pip's, behind its error
ALLOW_LONG_PATHS = (
    r"reg add HKLM\SYSTEM\CurrentControlSet\Control\FileSystem /v LongPathsEnabled /t REG_DWORD /d 1 /f"
)


class SetupError(Exception):
    """A set-up failure that the user can mend, in one sentence."""


# Which Python, which lock


def check_python(version: Sequence[Any]) -> None:
    """SetupError unless the pinned packages support this Python."""
    if not OLDEST <= tuple(version[:2]) <= NEWEST:
        raise SetupError(
            "this is Python %d.%d, and the lab's packages need Python 3.11, 3.12 or 3.13: install "
            "one of them and start lab.py with it, for example: python3.12 lab.py run" % tuple(version[:2])
        )


def check_machine(system: str, machine: str) -> None:
    """SetupError for a processor that the pinned packages are not built for."""
    arm = machine.lower() in ("arm64", "aarch64")
    if arm != (system == "Darwin"):
        raise SetupError(
            "this Python is made for %s %s, and the lab's packages are built for x86_64 Linux and Windows "
            "and for Apple silicon: use such a machine, and on an M1 or later a Python for arm64 (brew "
            "install python@3.12)" % (system, machine)
        )


def choose_lock(system: str, nvidia: bool, paperspace: bool) -> str:
    """The name of the lock in environment/ that fits a machine."""
    if not nvidia or system not in ("Linux", "Windows"):
        return "cpu"
    if system == "Windows":
        return "windows"
    return "paperspace" if paperspace else "cuda"


def has_nvidia() -> bool:
    """Whether an NVIDIA driver answers on this machine."""
    if Path("/proc/driver/nvidia/version").exists():
        return True
    tool = shutil.which("nvidia-smi")
    try:
        return tool is not None and subprocess.run([tool, "-L"], **_QUIET).returncode == 0
    except OSError:
        return False


def is_paperspace() -> bool:
    """Whether this is a Paperspace notebook machine."""
    named = any(key.startswith("PAPERSPACE_") for key in os.environ)
    return named or (Path("/notebooks").is_dir() and Path("/storage").is_dir())


def lock_for(venv: Path) -> str:
    """The lock to use: FINELAB_LOCK's, else the installed one (no time to ask the card), else chosen."""
    forced = os.environ.get("FINELAB_LOCK", "") or str(read_stamp(venv).get("lock", ""))
    return forced or choose_lock(platform.system(), has_nvidia(), is_paperspace())


# What is installed


def python_of(venv: Path) -> Path:
    """The environment's own Python."""
    return venv / "Scripts" / "python.exe" if os.name == "nt" else venv / "bin" / "python"


def site_packages(venv: Path) -> Path:
    """Where the environment's packages are, for the Python that runs lab.py."""
    if os.name == "nt":
        return venv / "Lib" / "site-packages"
    return venv / "lib" / ("python%d.%d" % sys.version_info[:2]) / "site-packages"


def read_stamp(venv: Path) -> Dict[str, Any]:
    """What is in `venv`: its lock, and the rest once it was installed to its end."""
    try:
        stamp = json.loads((venv / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def wanted_stamp(root: Path, lock: str) -> Dict[str, str]:
    """What `venv` must have for this lock and this place; its Python may be another than lab.py's."""
    path = root / "environment" / (lock + ".txt")
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in path.parent.glob("*.txt")))
        raise SetupError("there is no lock %s; set FINELAB_LOCK to one of: %s" % (path, known or "(none)"))
    return {
        "lock": lock,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        # escaped, so that an older lab.py's finelab.pth of a folder with other letters is written anew
        "root": str(root).encode("ascii", "backslashreplace").decode("ascii"),
    }


def is_ready(root: Path, venv: Path, lock: str) -> bool:
    """Whether `venv` holds exactly this lock; only files are looked at, so it takes no time."""
    return read_stamp(venv) == wanted_stamp(root, lock) and _has_base_python(venv)


def _has_base_python(venv: Path) -> bool:
    home = _pyvenv(venv).get("home")  # not `executable`: Homebrew's names a patch release, which goes
    return home is not None and Path(home).exists() and python_of(venv).exists()


def _was_moved(venv: Path) -> bool:
    """Whether it was made in another place: its scripts still start what is, or was, there."""
    command = _pyvenv(venv).get("command", "")  # 3.11 on
    made = re.search(r" -m venv (?:--\S+ )*(.+)$", command)
    return made is not None and Path(made.group(1)).resolve() != venv


def _pyvenv(venv: Path) -> Dict[str, str]:
    """How `venv` was made, by its own record; empty where there is none."""
    try:
        settings = (venv / "pyvenv.cfg").read_text(encoding="utf-8")
    except OSError:
        return {}
    return dict(re.findall(r"^(\w+)\s*=\s*(.+?)\s*$", settings, re.MULTILINE))


# Installing


def install(root: Path, venv: Path, lock: str) -> None:
    """Bring `venv` to the lock, whatever state it is in; SetupError says what stopped it."""
    with _writing(venv), _guard(venv):
        if is_ready(root, venv, lock):  # another lab.py made it while this one waited
            return
        require_idle(Path(os.environ.get("FINELAB_RUNS") or root / "runs"))
        stamp = wanted_stamp(root, lock)
        started = time.monotonic()
        # pip takes one lock's build of torch for another's, so each lock has a fresh start
        other = read_stamp(venv).get("lock", lock) != lock
        if other or _was_moved(venv) or not _starts(python_of(venv)):
            _create(venv)
        _write_stamp(venv, {"lock": lock})  # not ready, but begun
        _install_packages(root, venv, lock)
        link(root, venv)
        _write_stamp(venv, stamp)
        print("ready after %s" % _clock(time.monotonic() - started), file=sys.stderr, flush=True)


def require_idle(runs: Path) -> None:
    """SetupError while a run is at work: its training would go on with half of the old packages."""
    for path in runs.rglob(".*lock"):
        try:
            file = path.open("rb+")
        except OSError:  # another user's, or gone meanwhile
            continue
        with file:
            if not _try_lock(file.fileno()):
                raise SetupError(
                    "%s is at work, and the environment has to be brought to another lock: wait for it, or "
                    "stop it (what it trained is kept), then run the same command again" % path.parent
                )


def link(root: Path, venv: Path) -> None:
    """Let the environment's Python find the library in `root`, from any folder."""
    # Before 3.13 Python reads this file in the locale's encoding, so it is ASCII: a line of code, with bytes.
    line = "import os, sys; root = os.fsdecode(%r); root in sys.path or sys.path.append(root)\n"
    text = line % os.fsencode(str(root))
    (site_packages(venv) / "finelab.pth").write_text(text, encoding="ascii")


def _write_stamp(venv: Path, stamp: Dict[str, str]) -> None:
    partial = venv / STAMP_NEW
    partial.write_text(json.dumps(stamp, indent=2) + "\n", encoding="utf-8")
    partial.replace(venv / STAMP)


def _starts(python: Path) -> bool:
    """Whether the environment's Python runs, is of this version and has pip."""
    code = "import pip, sys; sys.exit(sys.version_info[:2] != %r)" % (sys.version_info[:2],)
    try:
        return subprocess.run([str(python), "-c", code], **_QUIET).returncode == 0
    except OSError:
        return False


def _create(venv: Path) -> None:
    found = [entry for entry in venv.iterdir() if entry.name not in (GUARD, LOG, STAMP, STAMP_NEW)]
    if found and not any((venv / mark).exists() for mark in (STAMP, "pyvenv.cfg")):
        raise SetupError(
            "%s holds %s and is no environment: nothing was touched; "
            "FINELAB_VENV must be a new or an empty folder"
            % (venv, ", ".join(sorted(entry.name for entry in found)[:3]))
        )
    maker = _maker(venv)
    _write_stamp(venv, {"lock": ""})  # of no lock: should this be killed, the next call begins anew
    for entry in found:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    made = subprocess.run(
        [maker, "-m", "venv", str(venv)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
    )
    if made.returncode != 0:
        (venv / LOG).write_text(made.stdout, encoding="utf-8")
        raise SetupError(
            "this Python cannot make a virtual environment (%s); on Debian and Ubuntu "
            "`apt install python3-venv` adds what it lacks; the full log is %s"
            % (_last_line(made.stdout.splitlines()), venv / LOG)
        )


def _maker(venv: Path) -> str:
    """The Python to make `venv` with: when that one runs lab.py, its base, as it is deleted first."""
    if Path(sys.prefix).resolve() != venv.resolve():
        return sys.executable
    base = Path(sys.executable).resolve()
    if venv.resolve() in base.parents:  # a copy, as on Windows
        raise SetupError(
            "%s has to be made anew, and lab.py runs on its Python: nothing was touched; `deactivate` "
            "first, then run the same command again" % venv
        )
    return str(base)


def _install_packages(root: Path, venv: Path, lock: str) -> None:
    path = root / "environment" / (lock + ".txt")
    pins = re.findall(r"^\w\S*==\S+", path.read_text(encoding="utf-8"), re.MULTILINE)
    print(
        "installing %d packages from environment/%s.txt into %s; about 2 minutes on a fast line"
        % (len(pins), lock, venv),
        file=sys.stderr,
        flush=True,
    )
    with _Progress(len(pins), site_packages(venv)) as progress:
        for torch in (pin for pin in pins if pin.startswith("torch==")):
            _pip_first(venv, torch_sources(lock, platform.system(), torch), progress)
        _pip_first(venv, [["--no-deps", "-r", str(path)]], progress)


def torch_sources(lock: str, system: str, torch: str) -> List[List[str]]:
    """The pip arguments that get the right build of torch, in the order in which to try them."""
    plain = [torch]
    if lock not in TORCH_INDEX or (lock == "cpu" and system != "Linux"):
        return [["--no-deps", *plain]]
    special = ["--no-deps", "--index-url", TORCH_INDEX[lock]]
    if lock != "cpu":
        return [special + plain]
    # The package index's Linux build does not even import without its CUDA packages.
    return [[*special, "--retries", "0", "--timeout", "20", *plain], plain]


def _pip_first(venv: Path, attempts: List[List[str]], progress: "_Progress") -> None:
    """Run pip with the first arguments that work; SetupError when none do."""
    for arguments in attempts:
        code, lines = _pip(venv, arguments, progress)
        if code == 0:
            return
    raise SetupError(
        "%s; the full log is %s; `python -m finelab doctor` says what this machine lacks"
        % (explain(lines), venv / LOG)
    )


def _pip(venv: Path, arguments: List[str], progress: "_Progress") -> Tuple[int, List[str]]:
    # Bytecode is made when a module is first imported: making all of it here doubles the time.
    command = [str(python_of(venv)), "-m", "pip", "install", "--no-input", "--no-compile"]
    command += ["--disable-pip-version-check", "--progress-bar", "off", *arguments]
    lines = []
    with (venv / LOG).open("a", encoding="utf-8") as log:
        log.write("$ pip install %s\n" % " ".join(arguments))
        pip = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            close_fds=False,  # pip inherits the guard
        )
        with pip:
            for line in pip.stdout or ():
                log.write(line)
                lines.append(line.strip())
                progress.note(line)
    return pip.returncode, lines


def explain(lines: List[str]) -> str:
    """One sentence for a pip that failed, from what it printed."""
    text = "\n".join(lines)
    if NO_DISK.search(text):
        return "the disk is full: free some space and run the same command again"
    if LONG_PATH.search(text):
        return (
            "a path is too long for Windows: put the lab into a shorter folder, or allow long paths in a "
            "PowerShell of the administrator (%s)" % ALLOW_LONG_PATHS
        )
    if NO_NETWORK.search(text):
        return "no network: pip cannot reach the package index (%s)" % _last_line(lines)
    return "pip could not install the packages (%s)" % _last_line(lines)


def _last_line(lines: List[str]) -> str:
    errors = [line for line in lines if line.upper().startswith("ERROR")]
    said = [line for line in lines if line]
    return (errors or said or ["it said nothing"])[-1]


@contextlib.contextmanager
def _writing(venv: Path) -> Iterator[None]:
    try:
        venv.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise SetupError("cannot write into %s: %s" % (venv, error.strerror or error)) from error


@contextlib.contextmanager
def _guard(venv: Path) -> Iterator[None]:
    """One lab.py at a time installs; the system lets the lock go when its holders die."""
    with (venv / GUARD).open("w") as file:
        os.set_inheritable(file.fileno(), True)  # so that a pip that outlives lab.py still holds it
        if not _try_lock(file.fileno()):
            print("another lab.py is installing into %s: waiting for it" % venv, file=sys.stderr)
            while not _try_lock(file.fileno()):
                time.sleep(0.5)
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


class _Progress:
    """A live line of what pip has done: redrawn on a terminal, printed now and then elsewhere."""

    def __init__(self, total: int, packages: Path) -> None:
        self.total = total
        self.packages = packages
        self.fetched = 0
        self.live = sys.stderr.isatty()
        self.started = time.monotonic()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._draw, daemon=True)

    def __enter__(self) -> "_Progress":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()
        if self.live:
            print(file=sys.stderr)

    def note(self, line: str) -> None:
        """Take one line that pip printed."""
        if line.startswith(("Collecting ", "Processing ", "Requirement already satisfied")):
            self.fetched = min(self.fetched + 1, self.total)
        elif line.startswith("Ignoring "):  # a package for another system
            self.total -= 1

    def _draw(self) -> None:
        shown = ""
        while not self.ended.wait(1 if self.live else 10):
            text = self._text()
            if self.live:
                print("\r" + text.ljust(len(shown)), end="", file=sys.stderr, flush=True)
            elif text != shown:
                print(text, file=sys.stderr, flush=True)
            shown = text

    def _text(self) -> str:
        # pip is silent while it unpacks, but each package that is done leaves its .dist-info
        installed = min(len(list(self.packages.glob("*.dist-info"))), self.total)
        elapsed = time.monotonic() - self.started
        share = (self.fetched + installed) / (2 * self.total)
        left = ", about %s left" % _clock(elapsed / share - elapsed) if share > 0.1 else ""
        counts = "  %d/%d fetched, %d installed" % (self.fetched, self.total, installed)
        return "%s, %s%s" % (counts, _clock(elapsed), left)


def _clock(seconds: float) -> str:
    return "%d:%02d" % divmod(int(seconds), 60)


_QUIET = {
    "stdin": subprocess.DEVNULL,
    "stdout": subprocess.DEVNULL,
    "stderr": subprocess.DEVNULL,
}  # type: Dict[str, Any]


# Running


def start(python: Path, arguments: List[str]) -> int:
    """Run `python -m finelab ARGUMENTS` in the user's folder and return its exit code."""
    # Containers often set this; every kernel would then compile torch and its friends anew (8 s).
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    # -P: or what lies in the user's folder, a queue.py, would be imported in the place of the library's own
    command = [str(python), "-P", "-m", "finelab", *arguments]
    if os.name != "nt":
        os.execv(command[0], command)  # one process: a signal, kill -9 too, reaches the command
    child = subprocess.Popen(command)
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:  # the console sends Ctrl-C to the child as well: let it finish
            continue


def python_for_help(venv: Path) -> Path:
    """The environment's Python where it was installed to its end, for any lock and place, else this one."""
    if "root" in read_stamp(venv) and _has_base_python(venv):
        return python_of(venv)
    check_python(sys.version_info)
    return Path(sys.executable)


def main(arguments: List[str]) -> int:
    """Set up what is missing and hand over to the command; returns the exit code."""
    try:
        venv = Path(os.environ.get("FINELAB_VENV") or ROOT / ".venv").resolve()
        if not arguments or {"-h", "--help"} & set(arguments):
            os.environ["PYTHONPATH"] = str(ROOT)  # help needs no packages, so nothing is installed
            return start(python_for_help(venv), arguments or ["--help"])
        if arguments[0] not in COMMANDS:
            known = ", ".join(COMMANDS)
            raise SetupError("there is no command %r; there are: %s" % (arguments[0], known))
        lock = lock_for(venv)
        if not is_ready(ROOT, venv, lock):
            check_python(sys.version_info)
            check_machine(platform.system(), platform.machine())
            install(ROOT, venv, lock)
        return start(python_of(venv), arguments)
    except SetupError as error:
        print("finelab: %s" % error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nfinelab: stopped; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
