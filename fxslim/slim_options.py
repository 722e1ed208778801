"""What `fxslim slim` may be asked for, and what of it makes sense together."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

from pydantic import ConfigDict

from fxslim.export import DEFAULT_OPSET, OPSETS
from fxslim.export.quantize import Quantization
from fxslim.graph.errors import InputError
from fxslim.passes.budget import Budget, check_share
from fxslim.passes.importance import Importance, importance_names
from fxslim.passes.methods import Restore, Settings, settings
from fxslim.passes.options import PlanOptions, check_options
from fxslim.passes.rank_schedule import SLOPE
from fxslim.passes.rounds import Schedule
from fxslim.timing import parse_sizes

__all__ = ["SlimOptions"]


@dataclass(frozen=True)
class SlimOptions:
    """What `fxslim slim` was asked for. None means: the default that fits the model."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")  # a recipe may say nothing else

    model: str
    keep: float | None = None
    width: float | None = None
    of: Literal["params", "macs", "latency"] = "params"
    method: str | None = None
    importance: str | None = None  # one of `importance_names()`: plug-ins have more
    budget: Budget | None = None
    rounds: int | None = None
    schedule: Schedule = "geometric"
    slope: float = SLOPE
    calibration: str | tuple[str, ...] | None = None  # several, or one with a weight: see `Mixture.parse`
    evaluation: str | None = None
    restore: Restore | None = None
    groups: tuple[str, ...] | None = None
    keep_fixed: tuple[str, ...] = ()
    uncounted: tuple[str, ...] = ()
    inexact: bool = False
    round_to: int | None = None
    plan: str | None = None
    samples: int | None = None
    window: int | None = None
    text_field: str | None = None
    seed: int = 0
    opset: int = DEFAULT_OPSET
    provider: str = "auto"
    threads: int = 1
    latency_seconds: float = 10.0
    sizes: str | None = None
    split_fused: bool = False
    prepare: tuple[str, ...] = ()  # further passes before the plan, as `name{option=value}`
    task: str | None = None
    loader_compatible: bool = False
    dtype: str | None = None
    onnx_dtype: Literal["float16", "bfloat16"] | None = None
    quantize: Quantization | None = None
    max_quality_loss: float | None = None  # as a share of the original's score
    min_speedup: float | None = None
    max_bytes: int | None = None
    max_parity_error: float | None = None  # absolute, of any element of any output
    stream: bool = False  # weights stay on disk, each read when it is needed
    offload_activations: bool = False  # and what calibration batches hold between two pieces
    device: str | None = None  # that calibration runs on
    trust_pt2: bool = False
    trust_remote_code: bool = False

    def settings(self, *, data: bool) -> Settings:
        """What makes the method that is asked for, where there is calibration `data` or none.

        Raises:
            InputError: there is no such method, or it needs data that there is not.
        """
        return settings(
            self.method, importance=cast("Importance | None", self.importance), budget=self.budget,
            restore=self.restore, rounds=self.rounds, data=data, width=self.width is not None,
        )  # fmt: skip

    def planning(self, *, data: bool) -> dict[str, Any]:
        """What a plan is asked for but its share, as far as no model has to be known.

        Raises:
            InputError: there is no such method, or it needs data that there is not.
        """
        chosen = self.settings(data=data)
        asked: dict[str, Any] = {
            **chosen.options(), "restore": chosen.restore, "keep_fixed": self.keep_fixed, "uncounted": self.uncounted,
            "inexact": self.inexact, "seed": self.seed, "schedule": self.schedule, "slope": self.slope,
        }  # fmt: skip
        return asked if self.groups is None else {**asked, "groups": self.groups}

    def refuse_contradictions(self) -> None:
        """Returns if the options make sense together; what only a model can tell comes later.

        Raises:
            InputError: they do not.
        """
        given = [n for n in ("keep", "width", "plan") if getattr(self, n) is not None]
        if len(given) != 1:
            said = (
                f"{' and '.join('--' + n for n in given)} exclude each other"
                if given
                else "nothing says how much remains"
            )
            raise InputError(said, remedy="give one of --keep 0.7, --width 0.7 and --plan plan.json")
        for name in ("keep", "width"):
            if getattr(self, name) is not None:
                check_share(getattr(self, name), name)
        made = (
            "method", "importance", "budget", "groups", "keep_fixed", "uncounted", "inexact", "round_to", "of",
            "split_fused", "prepare", "rounds", "schedule", "slope",
        )  # fmt: skip
        default = {f.name: f.default for f in fields(self)}
        if self.plan and (idle := [n for n in made if getattr(self, n) != default[n]]):
            names = ", ".join("--" + n.replace("_", "-") for n in idle)
            raise InputError(
                f"{names}: no effect on a plan that is made already", remedy="leave it out, or make a new plan"
            )
        if self.opset not in OPSETS:
            raise InputError(f"opset {self.opset} is not supported", remedy=f"choose {OPSETS[0]} to {OPSETS[-1]}")
        for name, allowed in (("onnx_dtype", ("float16", "bfloat16")), ("quantize", ("dynamic", "static"))):
            if getattr(self, name) not in (None, *allowed):
                flag = "--" + name.replace("_", "-")
                raise InputError(f"{flag} is {getattr(self, name)!r}", remedy=f"choose {' or '.join(allowed)}")
        if self.importance is not None and self.importance not in importance_names():
            raise InputError(
                f"--importance is {self.importance!r}", remedy=f"choose one of {', '.join(importance_names())}"
            )
        parse_sizes(self.sizes)
        if self.of == "latency" and self.width is not None:
            raise InputError("--width has no share of the latency", remedy="give --keep 0.7 with --of latency")
        if self.offload_activations and not self.stream:
            raise InputError("--offload-activations: no effect without --stream", remedy="give both, or leave it out")
        for name in ("threads", "samples", "window"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"--{name} is {value}", remedy="give at least 1")
        if not 0 < self.latency_seconds < float("inf"):
            raise InputError(f"--latency-seconds is {self.latency_seconds:g}", remedy="give a positive number")
        self._refuse_idle_gates()

    def refuse_bad_planning(self) -> None:
        """Returns if a plan may be asked for like this, as far as no model has to be known.

        Raises:
            InputError: it may not.
        """
        if self.plan is not None or (self.method is None and self.calibration is None):
            return  # the model may bring data, and that a method
        rounding = 1 if self.round_to is None else self.round_to
        check_options(cast("PlanOptions", {**self.planning(data=True), "round_to": rounding}))

    def _refuse_idle_gates(self) -> None:
        """A gate that nothing, or everything, passes is a mistake."""
        for name in ("max_quality_loss", "min_speedup", "max_bytes", "max_parity_error"):
            value: Any = getattr(self, name)
            least = 0 if name in ("max_quality_loss", "max_parity_error") else 1e-9
            if value is not None and not least <= value < float("inf"):
                flag = "--" + name.replace("_", "-")
                raise InputError(f"{flag} is {value:g}", remedy="give a positive number")

    def command(self, out: Path) -> str:
        """The command line that says the same."""
        words = ["fxslim", "slim", self.model]
        for option in fields(self)[1:]:
            value, flag = getattr(self, option.name), "--" + option.name.replace("_", "-")
            if value == option.default:
                continue
            if option.name in ("keep_fixed", "uncounted", "calibration", "prepare") and isinstance(value, tuple):
                words += [w for pattern in value for w in (flag, pattern)]
            elif isinstance(value, bool):
                words.append(flag)
            else:
                words += [flag, ",".join(value) if isinstance(value, tuple) else f"{value}"]
        return shlex.join([*words, "-o", str(out)])
