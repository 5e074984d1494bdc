"""What rank, modules, precision and batch cost on a card: the plan's own functions behind sliders."""

from __future__ import annotations

import base64
import dataclasses
import html
from dataclasses import dataclass
from typing import Any

from finelab import machine, show
from finelab.recipe import Recipe
from finelab.train.cards import Card, card_called, cards
from finelab.train.memory import SHAPES, ModelShape, Setting, disk, known_name, memory, setting_of
from finelab.train.plan import SAVE_TOTAL_LIMIT, duration, rate_on_card
from finelab.train.workload import Schedule, assumed_counts, workload

ROWS = 1000  # as long as FineTome's are assumed to be
USABLE = 0.92  # of a card's size; a T4 of 16 GB reports 14.75 GiB
LIMITS = {f"{size} GB": round(USABLE * size * 2**30) for size in (8, 16, 24)}
EXPLORED = {name: shape for name, shape in SHAPES.items() if name != "Llama-3.1-70B"}  # too much for one card


@dataclass(frozen=True)
class Estimate:
    """What a setting takes: parameters, bytes of card memory by part and on disk, seconds for ROWS rows."""

    trainable: int
    total: int
    memory: dict[str, int]
    adapter_bytes: int
    seconds: float
    band_share: float
    at_best: bool
    fits_card: bool

    @property
    def fits(self) -> list[str]:
        """The sizes of card that it fits, of 8, 16 and 24 GB."""
        return [name for name, limit in LIMITS.items() if sum(self.memory.values()) <= limit]

    def __str__(self) -> str:
        least = "at least " if self.at_best else ""
        band = "" if self.at_best else f" +-{self.band_share:.0%}"
        fits = f"fits a card of {self.fits[0]}" if self.fits else f"too much for {list(LIMITS)[-1]}"
        time = f"{ROWS:,} rows in {least}{duration(self.seconds)}{band}"
        parts = ", ".join(f"{part} {size / 1e9:.2f}" for part, size in self.memory.items())
        return (
            f"{self.trainable:,} of {self.total:,} parameters train ({self.trainable / self.total:.2%}); "
            f"adapter on disk {self.adapter_bytes / 1e6:.0f} MB; "
            f"memory {sum(self.memory.values()) / 1e9:.2f} GB ({parts}), {fits}; "
            f"{time if self.fits_card else 'not on this card'}"
        )


def estimate(shape: ModelShape, setting: Setting, card: Card) -> Estimate:
    """What LoRA takes on a card, in full micro-batches of the longest rows; the time is with padding."""
    trainable = shape.adapter(setting.r, setting.target_modules)
    work = workload(*assumed_counts(ROWS, setting.length), Schedule(setting.batch_size, 1, 1, -1, seed=0))
    rate, at_best = rate_on_card(card, shape, setting)
    parts = memory(shape, setting)
    return Estimate(
        trainable=trainable,
        total=trainable + shape.body + shape.others,
        memory=parts,
        adapter_bytes=disk(shape, setting, SAVE_TOTAL_LIMIT)["adapter"],
        seconds=rate.seconds(work.batches),
        band_share=rate.band_share,
        at_best=at_best,
        fits_card=sum(parts.values()) <= card.hardware.gpu_memory_bytes,
    )


class Explorer:
    """Sliders that start at a recipe; `controls` are its widgets, `shape` is that of its model."""

    def __init__(self, recipe: Recipe, shape: ModelShape, card: str = "rtx-2060s") -> None:
        name = known_name(recipe.model.model_name) or recipe.model.model_name
        self.shapes = EXPLORED | {name: shape}
        start, profile = card_called(card), machine.decide(card_called(card).hardware, recipe)
        rows, length = recipe.training.per_device_train_batch_size, recipe.model.max_seq_length
        self._start = setting_of(recipe, profile, rows, length)
        shape.adapter(self._start.r, self._start.target_modules)  # its sentence, before a widget's traceback
        self.controls = _controls(self._start, name, start, self.shapes)
        self._line, self._picture = _drawn()
        for control in self.controls.values():
            control.observe(self._renew, names="value")
        self._renew()

    @property
    def setting(self) -> Setting:
        """What the sliders say."""
        chosen = {name: self.controls[name].value for name in _SLIDERS}
        return dataclasses.replace(self._start, **chosen)

    @property
    def estimate(self) -> Estimate:
        """What it takes."""
        return estimate(self.shapes[self.controls["model"].value], self.setting, self._card)

    @property
    def line(self) -> str:
        """The setting and what it takes, in words."""
        chosen = self.setting
        if not chosen.target_modules:
            return "Choose at least one of target_modules: without any there is nothing to train."
        return (
            f"{self.controls['model'].value} on a {self._card.name}, r {chosen.r} on "
            f"{len(chosen.target_modules)} of 7 projections, {chosen.weight_bits} bit, "
            f"{chosen.batch_size} x {chosen.length:,} tokens: {self.estimate}"
        )

    @property
    def figure(self) -> Any:
        """Memory by part against the sizes of cards."""
        parts = {name: size for name, size in self.estimate.memory.items() if size}
        return show.memory_bar(parts, LIMITS, f"{self.controls['model'].value}, memory while training")

    @property
    def view(self) -> show.Interactive:
        """What a notebook displays: the sliders, or picture and line as they stand."""
        import ipywidgets as widgets

        picture = base64.b64encode(self._picture.value).decode("ascii")
        static = f'<img src="data:image/png;base64,{picture}" alt=""><p>{html.escape(self.line)}</p>'
        box = widgets.VBox([*self.controls.values(), self._line, self._picture])
        return show.Interactive(box, static, self.line)

    @property
    def _card(self) -> Card:
        return cards()[self.controls["card"].value]

    def _renew(self, _change: Any = None) -> None:
        self._line.value = html.escape(self.line)
        if self.setting.target_modules:
            self._picture.value = show.png(self.figure)


_SLIDERS = ("r", "target_modules", "weight_bits", "length", "batch_size", "use_gradient_checkpointing")


def _controls(start: Setting, model: str, card: Card, shapes: dict[str, ModelShape]) -> dict[str, Any]:
    """The widgets, by the names of `Setting`, and `model` and `card`."""
    import ipywidgets as widgets

    def slider(values: set[int], value: int, label: str) -> Any:
        options = sorted(values | {value})
        return widgets.SelectionSlider(options=options, value=value, description=label, **wide)

    wide: dict[str, Any] = {"style": {"description_width": "190px"}, "layout": {"width": "560px"}}
    modules = list(shapes[model].projections)
    return {
        "model": widgets.Dropdown(options=list(shapes), value=model, description="model", **wide),
        "card": widgets.Dropdown(
            options=[(each.name, key) for key, each in cards().items()],
            value=card.key,
            description="card, for the time",
            **wide,
        ),
        "r": slider({2**i for i in range(2, 9)}, start.r, "r"),
        "target_modules": widgets.SelectMultiple(
            options=modules,
            value=start.target_modules,
            rows=len(modules),
            description="target_modules",
            **wide,
        ),
        "weight_bits": widgets.ToggleButtons(
            options=[("4 bit", 4), ("16 bit", 16)], value=start.weight_bits, description="base model", **wide
        ),
        "length": slider({2**i for i in range(8, 14)}, start.length, "max_seq_length"),
        "batch_size": slider({1, 2, 4, 8, 16, 32}, start.batch_size, "per_device_train_batch_size"),
        "use_gradient_checkpointing": widgets.Dropdown(
            options=["unsloth", True, False],
            value=start.use_gradient_checkpointing,
            description="use_gradient_checkpointing",
            **wide,
        ),
    }


def _drawn() -> tuple[Any, Any]:
    """Where the line and the picture stand."""
    import ipywidgets as widgets

    return widgets.HTML(), widgets.Image(format="png")
