"""What a prompt cost: tokens, FLOPs, KV bytes, and the time the method itself took."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tokenreduce.stopwatch import Stopwatch

#: the parts of the bill, in the order an image passes them
STAGES = ("tower", "projector", "prefill", "decode step")


@dataclass(frozen=True)
class StageCost:
    """One part of the bill: FLOPs and, where they were measured, seconds, each with and without reduction."""

    flops: int
    flops_unreduced: int
    seconds: float | None = None
    seconds_unreduced: float | None = None

    def __str__(self) -> str:
        gflops = f"{_number(self.flops / 1e9)} = {_share(self.flops / 1e9, self.flops_unreduced / 1e9)}"
        if self.seconds is None:
            return gflops
        before = "" if self.seconds_unreduced is None else f" instead of {self.seconds_unreduced * 1e3:.2f}"
        return f"{gflops} in {self.seconds * 1e3:.2f}{before} ms"


@dataclass
class StepsRead:
    """What the decoding steps since a prompt read of its pictures, where a method chooses (stage ``decode``).

    One number per step, of all samples and beams together: entries of pictures that the layer which begins to choose
    ``held``, those that it and later ones ``read``, FLOPs of the new tokens, and ``signal_flops`` of what the method asked
    for, not part of them. A layer whose cache has a fixed size or a window hides what is not read, at full cost.
    """

    held: list[int] = field(default_factory=list)
    read: list[int] = field(default_factory=list)
    flops: list[int] = field(default_factory=list)
    signal_flops: list[int] = field(default_factory=list)

    def note(self, held: int, read: int, flops: int, signal_flops: int) -> None:
        """Add a step."""
        for row, value in zip((self.held, self.read, self.flops, self.signal_flops), (held, read, flops, signal_flops)):
            row.append(value)

    def __str__(self) -> str:
        return f"{_share(sum(self.read), sum(self.held))} in {len(self.held)} step(s)"


def _nothing() -> dict[str, tuple[int, int]]:
    return {}


@dataclass(frozen=True)
class Report:
    """The cost of the last prompt of a wrapped model.

    FLOPs are those of real tokens, of all samples and beams together; padding of prompts is left out. Bytes are those of the
    cache as it stands, padding included.

    Attributes:
        tokens_in: visual tokens per image, per sample: ``tokens_in[b][i]``.
        tokens_kept: those still there in the last decoder layer, in the same shape.
        tokens_at_layer: visual tokens each decoder layer works on, per sample: ``tokens_at_layer[l][b]``.
        equivalent_tokens: per sample, ``tokens_at_layer`` averaged over layers.
        flops, flops_unreduced: of the decoder's prefill, with and without reduction; of a vision encoder by itself, its own.
        kv_bytes: bytes of keys and values held after the prompt; 0 without a cache.
        kv_bytes_unreduced: what an unreduced cache of the same kind would hold.
        substitutes: what a method used in place of something that this model lacks, a clause each.
        step: FLOPs of the first new token, with and without reduction; None for a vision encoder by itself. Where a method
            chooses what new tokens read, ``by_stage`` takes the first of ``steps_read`` once there is one.
        steps_read: what decoding steps read of pictures, where a method chooses.
        signal_flops: FLOPs of the statistics that methods asked the decoder for, not part of ``flops``.
        encoding: FLOPs of ``tower`` and ``projector``, with and without reduction, worked out when asked for; empty when
            the prompt's images were encoded elsewhere.
        uncounted: parts of the model that are in no number here, in words.
        seconds, seconds_unreduced: per stage, where they were measured (``tokenreduce.timing``).
        target: what was asked for in place of a budget, as text; empty where a budget was given.
        choice: which method ``auto`` was, and why; empty without it.
        stopwatch: time of the method until the prompt was done; ``step_stopwatch``, in the decode steps since.
    """

    tokens_in: list[list[int]]
    tokens_kept: list[list[int]]
    tokens_at_layer: list[list[int]]
    flops: int
    flops_unreduced: int
    kv_bytes: int
    kv_bytes_unreduced: int
    methods: tuple[str, ...] = ()
    substitutes: tuple[str, ...] = ()
    step: tuple[int, int] | None = None
    signal_flops: int = 0
    encoding: Callable[[], Mapping[str, tuple[int, int]]] = field(default=_nothing, repr=False, compare=False)
    uncounted: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict, compare=False)
    seconds_unreduced: Mapping[str, float] = field(default_factory=dict, compare=False)
    target: str = ""
    choice: str = ""
    stopwatch: Stopwatch = field(default_factory=Stopwatch, repr=False, compare=False)
    step_stopwatch: Stopwatch = field(default_factory=Stopwatch, repr=False, compare=False)
    steps_read: StepsRead = field(default_factory=StepsRead, compare=False)

    @property
    def equivalent_tokens(self) -> list[float]:
        depth = len(self.tokens_at_layer)
        return [sum(column) / depth for column in zip(*self.tokens_at_layer, strict=True)]

    @property
    def method_ms(self) -> float:
        """Milliseconds spent on signals, selection and compaction until the prompt was done; waits for the device when it
        is a GPU."""
        return self.stopwatch.milliseconds

    @property
    def step_ms(self) -> float:
        """Milliseconds spent in all decode steps since, on masks and positions; waits for the device when it is a GPU."""
        return self.step_stopwatch.milliseconds

    @property
    def by_stage(self) -> dict[str, StageCost]:
        """The bill by ``STAGES``, of those that ran here. The step is the first token after the prompt."""
        prompt = (self.flops, self.flops_unreduced)
        if self.step is None:
            flops: dict[str, tuple[int, int]] = {"tower": prompt}
        else:
            step = (self.steps_read.flops[0], self.step[1]) if self.steps_read.flops else self.step
            flops = {**self.encoding(), "prefill": prompt, "decode step": step}
        return {
            stage: StageCost(*flops[stage], self.seconds.get(stage), self.seconds_unreduced.get(stage))
            for stage in STAGES
            if stage in flops
        }

    @property
    def speedup(self) -> float:
        """How many times fewer FLOPs the first token takes: of tower, projector and prefill, as far as they ran here."""
        costs = [cost for stage, cost in self.by_stage.items() if stage != "decode step"]
        return sum(cost.flops_unreduced for cost in costs) / max(sum(cost.flops for cost in costs), 1)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        names = ("methods", "substitutes", "tokens_in", "tokens_kept", "equivalent_tokens", "flops", "flops_unreduced")
        costs = (
            "kv_bytes",
            "kv_bytes_unreduced",
            "signal_flops",
            "uncounted",
            "method_ms",
            "step_ms",
            "target",
            "choice",
        )
        found = {name: getattr(self, name) for name in (*names, *costs)}
        if self.steps_read.held:
            found["steps_read"] = asdict(self.steps_read)
        return {**found, "by_stage": {stage: asdict(cost) for stage, cost in self.by_stage.items()}}

    def __str__(self) -> str:
        images = sum(map(len, self.tokens_in))
        tokens_in, kept = (sum(map(sum, x)) for x in (self.tokens_in, self.tokens_kept))
        each = [n for row in self.tokens_kept for n in row]
        heard = f", {_number(self.signal_flops / 1e9)} GFLOPs of attention statistics" if self.signal_flops else ""
        mean = sum(self.equivalent_tokens) / max(len(self.equivalent_tokens), 1)
        alone = self.step is None  # a vision encoder by itself: no prompt, no cache
        rows = {
            "methods": " + ".join(self.methods) or "-",
            **({"auto is": self.choice} if self.choice else {}),
            **({"asked for": f"{self.target}; {self.speedup:.2f} times fewer FLOPs in all"} if self.target else {}),
            **({"in place of the paper's": "; ".join(self.substitutes)} if self.substitutes else {}),
            "patches kept"
            if alone
            else "visual tokens kept": f"{kept:,} = {_share(kept, tokens_in)} in {images} image(s)",
            **({"in each image": ", ".join(map(str, each))} if 1 < len(each) <= 16 and len(set(each)) > 1 else {}),
            f"averaged over {'blocks' if alone else 'layers'}": f"{_number(mean)} per {'image' if alone else 'sample'}",
        }
        rows |= {"GFLOPs" if alone else f"{stage} GFLOPs": str(cost) for stage, cost in self.by_stage.items()}
        rows |= {"not counted": ", ".join(self.uncounted)} if self.uncounted else {}
        if self.steps_read.held:
            rows["entries read while decoding"] = str(self.steps_read)
        if not alone:
            held, whole = self.kv_bytes / 1024, self.kv_bytes_unreduced / 1024
            rows["KV cache KiB"] = f"{_number(held)} = {_share(held, whole)}"
        rows["method itself"] = f"{self.method_ms:.2f} ms{heard}"
        width = max(map(len, rows))
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())

    def _repr_html_(self) -> str:
        cells = (line.split("  ", 1) for line in str(self).splitlines())
        body = "".join(f"<tr><th style='text-align:left'>{a}</th><td>{b.strip()}</td></tr>" for a, b in cells)
        return f"<table>{body}</table>"


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%} of {_number(whole)}" if whole else "-"


def _number(x: float) -> str:
    return f"{x:,.0f}" if x >= 1000 else f"{x:.4g}"
