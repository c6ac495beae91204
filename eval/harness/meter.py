"""What every answer cost, measured while a model of lmms-eval generates: tokens, FLOPs, time, memory."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import tokenreduce as tr

from .answers import ends, new_tokens
from .unreduced import FirstPass, unreduced


class Meter:
    """Measures one model. ``rows`` holds one dict per prompt that was generated from, ``errors`` what was raised, and at which.

    A row: task and doc_id (None where a backend reads its documents in no order that tells), tokens_in and tokens_kept of
    all its images together, equivalent_tokens (averaged over decoder layers), prefill FLOPs with and without reduction,
    KV bytes after the prompt with and without, ttft_ms (from the call of ``generate`` to the end of its first forward pass,
    vision tower included), generate_ms, new_tokens, method_ms, peak_mib (device memory on CUDA; resident memory of the
    process on Linux, else None). FLOPs, bytes and method_ms are the batch's divided by ``batch``, ttft_ms and generate_ms
    the batch's. A prompt that is answered by several beams or several times over costs what all of them do; new_tokens are
    those of its answers, up to where each ends.

    ``observe`` is called after each batch with the model, its documents, where these are known, what ``generate`` was given,
    and the inputs of unscaled pictures, which ``unscaled`` tells of the prompts; None where pictures are not scaled.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.errors: list[tuple[str, list[tuple[str, int]]]] = []
        self.seen: list[tuple[str, int]] = []
        self.observe: Callable[[Any, list[Any], dict[str, Any], Any], None] = lambda *given: None
        self.unscaled: Callable[[Any], Mapping[str, Any] | None] = lambda ids: None
        self._last: Any = None

    @contextmanager
    def watching(self, model: Any) -> Iterator[None]:
        """Measure every ``model.generate`` of the ``with`` block; afterwards the model is as it was."""
        own = vars(model).get("generate")  # a wrapped model has one of its own
        original, timer = model.generate, _CallTimer(next(model.parameters()).device)

        def generate(*args: Any, **kwargs: Any) -> Any:
            ids = kwargs.get("input_ids", args[0] if args else None)
            documents, self.seen[:] = list(dict.fromkeys(self.seen)), []
            handles: list[Any] = []
            try:
                whole = self.unscaled(ids)
                bare = FirstPass(None if whole is None else whole["input_ids"].shape[1])
                handles += [model.register_forward_hook(timer.first), *bare.attach(model)]
                timer.start()
                out = original(*args, **kwargs)
            except Exception as error:
                self.errors.append((f"{type(error).__name__}: {' '.join(str(error).split())[:500]}", documents))
                raise
            finally:
                for handle in handles:
                    handle.remove()
            timer.stop()
            self._note(model, ids, kwargs, getattr(out, "sequences", out), documents, timer, bare, whole)
            if ids is not None and len(documents) == len(ids):
                self.observe(model, documents, kwargs, whole)
            return out

        model.generate = generate
        try:
            yield
        finally:
            del model.generate
            if own is not None:
                model.generate = own

    def _note(
        self,
        model: Any,
        ids: Any,
        arguments: dict[str, Any],
        out: Any,
        documents: list[Any],
        timer: _CallTimer,
        bare: FirstPass,
        whole: Mapping[str, Any] | None,
    ) -> None:
        batch = out.shape[0] if ids is None else ids.shape[0]
        prompt = 0 if ids is None else ids.shape[1]
        cost = self._reduced(model) if tr.is_wrapped(model) else []
        cost = cost or unreduced(model, ids, arguments.get("attention_mask"), bare, whole)  # text alone, too
        written = new_tokens(out[:, prompt:], batch, *ends(model, arguments))
        shared = {
            "ttft_ms": timer.ttft_ms,
            "generate_ms": timer.total_ms,
            "peak_mib": timer.peak_mib(),
            "batch": batch,
        }
        for i in range(batch):
            task, doc_id = documents[i] if len(documents) == batch else (None, None)
            own = {**(cost[i] if i < len(cost) else {}), "new_tokens": written[i]}
            self.rows.append({"task": task, "doc_id": doc_id, **own, **shared})

    def _reduced(self, model: Any) -> list[dict[str, Any]]:
        """Per sample, from the report of the prompt that has just run; none for a prompt without pictures."""
        try:
            report = tr.report(model)
        except ValueError:
            return []
        if report is self._last:
            return []
        self._last = report
        count = len(report.tokens_in)
        return [
            {
                "tokens_in": sum(report.tokens_in[i]),
                "tokens_kept": sum(report.tokens_kept[i]),
                "equivalent_tokens": report.equivalent_tokens[i],
                "flops": report.flops / count,
                "flops_unreduced": report.flops_unreduced / count,
                "kv_bytes": report.kv_bytes / count,
                "kv_bytes_unreduced": report.kv_bytes_unreduced / count,
                "method_ms": report.method_ms / count,
            }
            for i in range(count)
        ]


class _CallTimer:
    """Milliseconds of one call, and the memory peak during it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def start(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif (peak := Path("/proc/self/clear_refs")).exists():
            peak.write_text("5")  # resets VmHWM, see proc(5)
        self.ttft_ms: float | None = None
        self.begin = self.now()

    def first(self, *_: Any) -> None:
        if self.ttft_ms is None:
            self.ttft_ms = (self.now() - self.begin) * 1e3

    def stop(self) -> None:
        self.total_ms = (self.now() - self.begin) * 1e3

    def peak_mib(self) -> float | None:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        status = Path("/proc/self/status")
        found = (
            [line for line in status.read_text().splitlines() if line.startswith("VmHWM")] if status.exists() else []
        )
        return int(found[0].split()[1]) / 2**10 if found else None


def without_padding(rows: Sequence[dict[str, Any]], wanted: Counter[tuple[str, int]]) -> list[dict[str, Any]]:
    """``rows`` without those of requests that only pad a rank: each document as often as ``wanted`` says."""
    left = Counter(wanted)
    kept = []
    for row in rows:
        pair = (row["task"], row["doc_id"])
        if row["task"] is None or left[pair] > 0:
            left[pair] -= 1
            kept.append(row)
    return kept


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over prompts, ``text_alone`` of them without pictures.

    ttft_ms is the median, peak_mib the highest, tokens_per_s all new tokens over all time.
    """

    def numbers(name: str) -> list[float]:
        return [row[name] for row in rows if row.get(name) is not None]

    found: dict[str, Any] = {"prompts": len(rows), "text_alone": sum(row.get("tokens_in") == 0 for row in rows)}
    counts = ("tokens_in", "tokens_kept", "equivalent_tokens")
    costs = ("flops", "flops_unreduced", "kv_bytes", "kv_bytes_unreduced", "method_ms")
    for name in (*counts, *costs):
        found[name] = statistics.fmean(numbers(name)) if numbers(name) else None
    found["ttft_ms"] = statistics.median(numbers("ttft_ms")) if numbers("ttft_ms") else None
    seconds = sum(row["generate_ms"] / row["batch"] for row in rows) / 1e3
    found["tokens_per_s"] = sum(row["new_tokens"] for row in rows) / seconds if seconds else None
    found["peak_mib"] = max(numbers("peak_mib"), default=None)
    return found
