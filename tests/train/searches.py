"""Searches for the fastest batches on machines that are formulas."""

from finelab import machine
from finelab.train.search import Measured, Rows, Search, Setting

CPU = machine.Hardware(
    device="cpu", name="two cores", system="Linux", cores=2, memory_bytes=8 * 10**9, cpu_bfloat16=True
)
START = Setting(2, 4, "random", packing=False, gradient_checkpointing=False, bf16=True)
LONG = Rows(mean=500, mean_packed=1000, run_tokens=1e5)
MEMORY = 10 * 10**9


class Machine:
    """A machine whose speed and memory are a formula of the setting; `tried` are its trials."""

    def __init__(self, speed, fits=lambda setting: True, loss=lambda setting: 2.0, padding=0.0):
        self.speed, self.fits, self.loss, self.padding, self.tried = speed, fits, loss, padding, []

    def measure(self, setting):
        self.tried.append(setting)
        if not self.fits(setting):
            return None
        speed = self.speed(setting)
        return Measured(speed, self.loss(setting), self.padding, 10**9, 1 / speed)


def search(on, start=START, data=LONG, can_leave_autocast=True):
    return Search(on.measure, start, data, MEMORY).run(can_leave_autocast)
