"""What a prompt cost: tokens, FLOPs, KV bytes, and the time the method itself took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenreduce.stopwatch import Stopwatch


@dataclass(frozen=True)
class DecoderShape:
    """The numbers of a decoder that FLOPs and KV bytes follow from."""

    depth: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    recurrent: tuple[int, ...] = ()  # layers without attention

    @classmethod
    def of(cls, config: Any) -> DecoderShape:
        heads = config.num_attention_heads
        return cls(
            depth=config.num_hidden_layers,
            hidden=config.hidden_size,
            heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            # of a mixture of experts, those that a token passes
            mlp=(getattr(config, "moe_intermediate_size", None) or 0)
            * (getattr(config, "num_experts_per_tok", None) or 0)
            or config.intermediate_size,
            recurrent=tuple(
                i for i, kind in enumerate(getattr(config, "layer_types", None) or ()) if kind == "linear_attention"
            ),
        )

    def prefill_flops(self, tokens: Sequence[int], past: Sequence[int]) -> int:
        """FLOPs of all layers, of which layer i works on ``tokens[i]`` with ``past[i]`` cached before."""
        return sum(
            self.layer_flops(n, 0 if i in self.recurrent else n + before)
            for i, (n, before) in enumerate(zip(tokens, past))
        )

    def layer_flops(self, queries: int, keys: int) -> int:
        """FLOPs of one layer over ``queries`` tokens that attend to ``keys``: a multiply-add counts 2.

        Projections q, k, v, o; scores and weighted sum over the full square (no discount for causality, as is
        customary in this literature; none in a recurrent layer, whose keys are 0); a gated MLP of three matrices. Norms,
        embeddings and the head are left out.
        """
        attention = 2 * queries * self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        scores = 4 * queries * keys * self.heads * self.head_dim
        return attention + scores + 6 * queries * self.hidden * self.mlp

    def token_kv_bytes(self, element_size: int) -> int:
        """Bytes of keys and values of one token in all layers."""
        return 2 * (self.depth - len(self.recurrent)) * self.kv_heads * self.head_dim * element_size


@dataclass(frozen=True)
class Report:
    """The cost of the last prompt of a wrapped model.

    Attributes:
        tokens_in: visual tokens per image, per sample: ``tokens_in[b][i]``.
        tokens_kept: those still there in the last decoder layer, in the same shape.
        tokens_at_layer: visual tokens each decoder layer works on, per sample: ``tokens_at_layer[l][b]``.
        equivalent_tokens: per sample, ``tokens_at_layer`` averaged over layers.
        flops, flops_unreduced: of the decoder's prefill, all samples together, with and without reduction.
        kv_bytes: bytes of keys and values held after the prompt; 0 without a cache.
        kv_bytes_unreduced: what an unreduced cache would hold.
    """

    tokens_in: list[list[int]]
    tokens_kept: list[list[int]]
    tokens_at_layer: list[list[int]]
    flops: int
    flops_unreduced: int
    kv_bytes: int
    kv_bytes_unreduced: int
    methods: tuple[str, ...] = ()
    stopwatch: Stopwatch = field(default_factory=Stopwatch, repr=False, compare=False)

    @property
    def equivalent_tokens(self) -> list[float]:
        depth = len(self.tokens_at_layer)
        return [sum(column) / depth for column in zip(*self.tokens_at_layer, strict=True)]

    @property
    def method_ms(self) -> float:
        """Milliseconds spent on signals, selection and compaction; waits for the device when it is a GPU."""
        return self.stopwatch.milliseconds

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        names = ("methods", "tokens_in", "tokens_kept", "equivalent_tokens", "flops", "flops_unreduced")
        return {name: getattr(self, name) for name in (*names, "kv_bytes", "kv_bytes_unreduced", "method_ms")}

    def __str__(self) -> str:
        def share(part: float, whole: float) -> str:
            return f"{part / whole:.1%} of {number(whole)}" if whole else "-"

        def number(x: float) -> str:
            return f"{x:,.0f}" if x >= 1000 else f"{x:.4g}"

        images = sum(map(len, self.tokens_in))
        tokens_in, kept = (sum(map(sum, x)) for x in (self.tokens_in, self.tokens_kept))
        rows = {
            "methods": " + ".join(self.methods) or "-",
            "visual tokens kept": f"{kept:,} = {share(kept, tokens_in)} in {images} image(s)",
            "averaged over layers": f"{number(sum(self.equivalent_tokens) / max(len(self.equivalent_tokens), 1))} per sample",
            "prefill GFLOPs": f"{number(self.flops / 1e9)} = {share(self.flops / 1e9, self.flops_unreduced / 1e9)}",
            "KV cache KiB": f"{number(self.kv_bytes / 1024)} = {share(self.kv_bytes / 1024, self.kv_bytes_unreduced / 1024)}",
            "method itself": f"{self.method_ms:.2f} ms",
        }
        width = max(map(len, rows))
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())

    def _repr_html_(self) -> str:
        cells = (line.split("  ", 1) for line in str(self).splitlines())
        body = "".join(f"<tr><th style='text-align:left'>{a}</th><td>{b.strip()}</td></tr>" for a, b in cells)
        return f"<table>{body}</table>"
