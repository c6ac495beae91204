"""Proportional attention stays on fused kernels: which one runs, what it costs in memory, and kernels without a mask."""

from __future__ import annotations

import pytest
import timm
import torch
from models import llava, prompt, vision
from probe_methods import MergePairs
from torch.nn import functional as F
from transformers import AttentionInterface, AutoConfig, AutoModel
from transformers.masking_utils import AttentionMaskInterface, flash_attention_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import tokenreduce as tr
from tokenreduce.adapters.attention_functions import KeyBias, lengthened
from tokenreduce.adapters.encoders.blocks import MultiheadBlock
from tokenreduce.adapters.registry import family_of
from tokenreduce.eval import tiny_models as zoo
from tokenreduce.eval.bench.timing import LargestTensor
from tokenreduce.method import Method, Step
from tokenreduce.model_facts import ModelFacts
from tokenreduce.reduction import Reduction
from tokenreduce.signals import AttentionReceived, ClsAttention

TOLERANCE = 3e-5  # float32, the bias added to the logits or carried through the product
FUSED = {
    f"_scaled_dot_product_{kernel}"
    for kernel in ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
}
NATIVE = "_native_multi_head_attention"  # what nn.MultiheadAttention runs instead where no gradient is asked for
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
FLASH = "flash_stand_in"
widths: list[int] = []


def flash_stand_in(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **kwargs):
    """What flash attention demands and gives, written out."""
    assert attention_mask is None
    assert query.shape[-1] == key.shape[-1] == value.shape[-1]
    assert query.shape[-1] % 8 == 0
    assert module.config._attn_implementation == FLASH  # looks its kernel up by this name
    widths.append(query.shape[-1])
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return ((query @ key.mT * scaling).softmax(-1) @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register(FLASH, flash_stand_in)
AttentionMaskInterface.register(FLASH, flash_attention_mask)


# ------------------------------------------------------------------ which kernel runs


class Operations(LargestTensor):
    """Names of all operations, and the largest tensor that any of them makes."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._opname)
        return super().__torch_dispatch__(func, types, args, kwargs)

    def attention(self):
        return [name for name in self.names if name in FUSED or name == NATIVE]


def tower(library: str, side: int):
    """A narrow tower of four blocks over side x side patches and [CLS]."""
    if library == "timm":
        more = {"depth": 4, "embed_dim": 24, "num_heads": 3, "num_classes": 7}
        model = timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=16 * side, **more)
    elif library == "open_clip":
        open_clip = pytest.importorskip("open_clip")
        picture = {"image_size": 16 * side, "patch_size": 16, "width": 24, "layers": 4, "head_width": 8}
        text = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
        model = open_clip.CLIP(embed_dim=12, vision_cfg=picture, text_cfg=text).visual
    else:
        config = AutoConfig.for_model(**{**vision("clip", grid=side), "image_size": 16 * side, "patch_size": 16})
        model = AutoModel.from_config(config, attn_implementation="sdpa")
    return model.eval()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("library", ["timm", "transformers", "open_clip"])
def test_the_fused_kernel_runs_and_nothing_of_n_by_n_is_made(library, gradients, device):
    side, r = 20, 8
    model = tower(library, side).to(device)
    x = torch.randn(2, 3, 16 * side, 16 * side, device=device)
    with torch.set_grad_enabled(gradients):
        with Operations() as plain:
            model(x)
        with tr.wrapped(model, tr.ToMe(r=r)), Operations() as merged:
            model(x)
    fewest = side * side + 1 - 4 * r
    assert len(plain.attention()) == 4
    assert len(merged.attention()) == 4
    assert set(merged.attention()[1:]) <= FUSED  # the first block has nothing to add yet
    assert "_softmax" not in merged.names
    assert merged.bytes < 4 * fewest**2


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask and attn_mask")
@pytest.mark.parametrize("mask", [None, "float", "bool"])
def test_multi_head_attention_with_a_mask_of_its_own(mask):
    """Equals softmax(q k^T * scale + bias + mask) v; a bool mask of nn.MultiheadAttention is True where nothing is seen."""
    open_clip = pytest.importorskip("open_clip")
    module = open_clip.transformer.ResidualAttentionBlock(24, 3).eval()
    attention = module.attn
    x, bias = torch.randn(2, 10, 24), torch.randint(1, 9, (2, 10)).log()
    hidden = torch.ones(10, 10).triu(3).bool()
    own = {None: None, "bool": hidden, "float": torch.zeros(10, 10).masked_fill(hidden, -2.0)}[mask]
    handle = MultiheadBlock(module).bias_keys(lambda: bias)
    with torch.no_grad():
        got, _ = attention(x, x, x, need_weights=False, attn_mask=own)
        q, k, v = F.linear(x, attention.in_proj_weight, attention.in_proj_bias).chunk(3, -1)
        q, k, v = (t.unflatten(-1, (3, -1)).transpose(1, 2) for t in (q, k, v))
        logits = q @ k.mT * 8**-0.5 + bias[:, None, None]
        if mask == "bool":
            logits = logits.masked_fill(hidden, -torch.inf)
        elif mask == "float":
            logits = logits + own
        expected = attention.out_proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)
    handle.remove()
    assert not attention._forward_pre_hooks


# ------------------------------------------------------------------ kernels that take no mask


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # one channel, or a bias rounded to the dtype, would be off by 1.6e-2 and 2e-3
    [(torch.float32, 5e-6), (torch.bfloat16, 1e-4), (torch.float16, 1e-5)],
    ids=["float32", "bfloat16", "float16"],
)
def test_channels_carry_the_bias_in_half_precision(dtype, tolerance):
    """Against float64; sums in float32, as in the kernels."""
    q, k, v = (torch.randn(2, 4, 577, 64).to(dtype) for _ in range(3))
    bias, scale = torch.randint(1, 257, (2, 577)).log(), 0.125
    expected = (q.double() @ k.double().mT * scale + bias.double()[:, None, None]).softmax(-1) @ v.double()
    long = [x.float() for x in lengthened(q, k, v, bias, scale)]
    got = (long[0] @ long[1].mT * scale).softmax(-1) @ long[2]
    torch.testing.assert_close(got[..., :64].double(), expected, atol=tolerance, rtol=0)
    assert not got[..., 64:].any()


@pytest.mark.parametrize(
    ("d", "of_value", "width"), [(64, 64, 72), (72, 72, 80), (60, 60, 64), (63, 63, 72), (64, 80, 80)]
)
def test_heads_grow_to_a_multiple_of_eight(d, of_value, width):
    q, k, v = torch.randn(1, 4, 5, d), torch.randn(1, 2, 7, d), torch.randn(1, 2, 7, of_value)
    long = lengthened(q.half(), k.half(), v.half(), torch.zeros(1, 7), d**-0.5)
    assert [tuple(x.shape) for x in long] == [(1, 4, 5, width), (1, 2, 7, width), (1, 2, 7, width)]
    assert {x.dtype for x in long} == {torch.float16}


def test_the_scale_is_that_of_the_short_heads():
    model = AutoModel.from_config(AutoConfig.for_model(**vision()), attn_implementation="sdpa")
    model.config._attn_implementation = FLASH
    q, k, v = torch.randn(3, 2, 3, 5, 8)
    bias = torch.randint(1, 9, (2, 5)).log()
    attention = family_of(model).blocks[0].core
    handle = KeyBias(attention, lambda: bias)
    got, _ = ALL_ATTENTION_FUNCTIONS[attention.config._attn_implementation](attention, q, k, v, None)
    handle.remove()
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[:, None, None])
    torch.testing.assert_close(got.transpose(1, 2), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("kind", ["clip_vision_model", "siglip_vision_model", "dinov2"])
@torch.no_grad()
def test_a_tower_on_flash_attention_equals_the_one_on_sdpa(kind):
    config = AutoConfig.for_model(**{**vision(), "model_type": kind, "mlp_ratio": 2})
    model = AutoModel.from_config(config, attn_implementation="sdpa").eval()
    for p in model.parameters():
        if p.ndim > 1:
            p.normal_(0, 0.2)
    x = torch.randn(2, 3, 32, 32)
    with tr.wrapped(model, MergePairs()):
        expected = model(x).last_hidden_state
    with tr.wrapped(model, MergePairs(proportional=False)):
        plain = model(x).last_hidden_state
    assert (expected - plain).abs().max() > 1e-3
    model.config._attn_implementation = FLASH  # set_attn_implementation would look for a package of this name
    unwrapped = model(x).last_hidden_state
    configs = [getattr(m, "config", None) for m in model.modules()]
    widths.clear()
    with tr.wrapped(model, MergePairs()):
        torch.testing.assert_close(model(x).last_hidden_state, expected, atol=TOLERANCE, rtol=0)
    assert widths == [8, 16, 16, 16]  # nothing is merged before the first block
    assert torch.equal(model(x).last_hidden_state, unwrapped)
    assert all(getattr(m, "config", None) is c for m, c in zip(model.modules(), configs))
    assert not any("tokenreduce" in name for m in model.modules() for name in vars(m))


def spy(needs):
    """Keeps the first half at the projector and notes what it was shown."""

    class Spy(Method, register=False):
        name, title, stages = "spy", "spy", ("projector",)

        def plan(self, facts: ModelFacts):
            return (Step("projector", needs=needs),)

        def reduce(self, tokens):
            seen.append(tokens)
            k = tokens.num_tokens // 2
            return Reduction.select(torch.arange(k).expand(len(tokens.features), k), tokens.num_tokens)

    seen: list = []
    return Spy(), seen


@pytest.mark.parametrize("attention", ["eager", "sdpa", FLASH])
@torch.no_grad()
def test_signals_of_later_blocks_hold_the_bias(attention):
    """What is heard after merging are values of the maps that eager attention makes under the same bias."""
    needs = (ClsAttention(2), AttentionReceived(2))
    model = llava("clip")
    inputs = prompt(model, [2], "left")
    model.set_attn_implementation({"vision_config": attention})
    method, seen = spy(needs)
    with tr.wrapped(model, MergePairs(blocks=(0,)), method):
        model(**inputs)
    model.set_attn_implementation({"vision_config": "eager"})
    with tr.wrapped(model, MergePairs(blocks=(0,))):
        maps = model.model.vision_tower(inputs["pixel_values"], output_attentions=True).attentions[2]
    assert maps.shape[-1] == 14
    for signal, rows in zip(needs, (maps[:, :, 0].mean(1), maps.mean((1, 2)))):
        heard = seen[0].signal(signal)
        torch.testing.assert_close(heard.sort().values, rows[:, 1:].sort().values, atol=2e-6, rtol=0)


@pytest.mark.parametrize("key", ["llava", "llava_next", "llava_onevision"])
@torch.no_grad()
def test_a_model_whose_tower_is_on_flash_attention(key):
    model = zoo.build(key)
    inputs = zoo.inputs(key, "mixed", model)
    stages = [tr.ToMe(r=2)]
    if family_of(model).facts().has_cls:
        stages.append(tr.FasterVLM(keep=4))
    with tr.wrapped(model, *stages):
        expected, kept = model(**inputs).logits, [image.kept() for image in tr.trace(model).images]
    model.set_attn_implementation({"vision_config": FLASH})
    widths.clear()
    with tr.wrapped(model, *stages):
        got = model(**inputs).logits
        assert all(torch.equal(a, b.kept()) for a, b in zip(kept, tr.trace(model).images, strict=True))
    assert set(widths) > {8}
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.gpu
@torch.no_grad()
def test_real_flash_attention():
    """As far from a float32 tower of the same weights as sdpa in bfloat16 is."""
    pytest.importorskip("flash_attn", reason="needs the flash-attn package")
    config = AutoConfig.for_model(**{**vision("clip", grid=12), "hidden_size": 192, "intermediate_size": 192})
    model = AutoModel.from_config(config).eval().cuda().bfloat16()
    x = torch.randn(2, 3, 96, 96, device="cuda", dtype=torch.bfloat16)

    def run(attention, dtype):
        model.to(dtype).set_attn_implementation(attention)
        with tr.wrapped(model, MergePairs(r=16)):
            return model(x.to(dtype)).last_hidden_state.float()

    expected = run("sdpa", torch.float32)
    error = {name: (run(name, torch.bfloat16) - expected).abs().mean() for name in ("sdpa", "flash_attention_2")}
    assert error["flash_attention_2"] < 1.5 * error["sdpa"]
