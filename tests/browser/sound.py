"""A sound system without a sound card: what is spoken goes to a null sink, and is heard by recording that."""

import array
import os
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager

PROGRAMS = ("speech-dispatcher", "pulseaudio", "parec", "espeak-ng")
SPEECH = """AudioOutputMethod "pulse"
AddModule "espeak-ng" "sd_espeak-ng" "espeak-ng.conf"
DefaultModule espeak-ng
"""
RATE = 16_000  # samples a second
LOUD = 500  # of 32,768: speech is above 1,000, silence is exactly 0


def missing():
    """The first program that is not installed, or None."""
    return next((name for name in PROGRAMS if shutil.which(name) is None), None)


class Ear:
    """Hears what is played, in pieces of a tenth of a second."""

    def __init__(self, env):
        command = ["parec", "-d", "null0.monitor", f"--rate={RATE}", "--channels=1", "--latency-msec=50"]
        self.process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def piece(self):
        samples = array.array("h", self.process.stdout.read(2 * RATE // 10))
        return max(map(abs, samples), default=0)

    def hears(self, sound, within_s):
        """Whether there is sound, or half a second of silence, before so many seconds are over."""
        end, quiet = time.monotonic() + within_s, 0
        while time.monotonic() < end:
            loud = self.piece() > LOUD
            quiet = 0 if loud else quiet + 1
            if loud if sound else quiet == 5:
                return True
        return False


@contextmanager
def null_sink(folder):
    """The environment in which a browser speaks to the null sink."""
    runtime, config = folder / "runtime", folder / ".config" / "speech-dispatcher"
    runtime.mkdir(mode=0o700)
    config.mkdir(parents=True)
    (config / "speechd.conf").write_text(SPEECH)
    env = {**os.environ, "HOME": str(folder), "XDG_RUNTIME_DIR": str(runtime)}
    env |= {"XDG_CONFIG_HOME": str(config.parent), "PULSE_SERVER": f"unix:{runtime}/pulse/native"}
    loads = ["--load=module-null-sink sink_name=null0", "--load=module-native-protocol-unix"]
    options = ["-n", "--daemonize=no", "--exit-idle-time=-1", "--use-pid-file=no"]
    pulse = subprocess.Popen(["pulseaudio", *options, *loads], env=env, stderr=subprocess.DEVNULL)
    try:
        yield env
    finally:
        for pid_file in runtime.rglob("speech-dispatcher.pid"):  # the browser started it
            os.kill(int(pid_file.read_text()), signal.SIGTERM)
        pulse.terminate()
        pulse.wait()
