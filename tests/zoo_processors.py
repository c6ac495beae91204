"""Processors of the zoo's families, put together in memory, with a tokenizer of words whose ids are those of the zoo."""

from __future__ import annotations

import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers

from tokenreduce.eval import tiny_models as zoo
from tokenreduce.eval.tiny_models.common import NEWLINE, SIDE, TILE, WORDS

WORD = "word"
NAMES = {"<pad>": 0, "<s>": 1, "</s>": 2, "<image>": 3, "<video>": 4, "<fake_token_around_image>": 5, "<end>": 6}
NAMES |= {"<global-img>": 7, "\n": NEWLINE, "<frames>": 9, WORD: WORDS}
NAMES |= {f"<row_{r + 1}_col_{c + 1}>": TILE + 3 * r + c for r in range(3) for c in range(3)}
BORDER = {"start": "<fake_token_around_image>", "end": "<end>"}
FIXED = {"size": {"height": SIDE, "width": SIDE}}
SHORT = {"size": {"shortest_edge": SIDE}, "crop_size": FIXED["size"]}
TILES = {"image_grid_pinpoints": zoo.llava.PINPOINTS}
CLIP = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
PACKED = {
    "patch_size": 4,
    "merge_size": 2,
    "temporal_patch_size": 2,
    "size": {"shortest_edge": 16, "longest_edge": 10**6},
}


#: whose pictures are cut and written as those of Qwen-VL
QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "cosmos3_omni", "lfm3_vl")


def tokenizer(**names):
    words = Tokenizer(models.WordLevel(NAMES, unk_token=WORD))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = hf.PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token=WORD,
        padding_side="left",
        extra_special_tokens=names,
    )
    made.add_special_tokens({"additional_special_tokens": [name for name in NAMES if name not in (WORD, "<frames>")]})
    return made


def processor(key: str):
    """The processor of a family, in the sizes of the zoo; None where none is put together here."""
    media = {"image_token": "<image>", "video_token": "<video>"}
    match key:
        case "llava":
            return hf.LlavaProcessor(hf.CLIPImageProcessor(**SHORT), tokenizer(**media), **CLIP)
        case "llava_next":
            return hf.LlavaNextProcessor(hf.LlavaNextImageProcessor(**SHORT, **TILES), tokenizer(**media), **CLIP)
        case "llava_next_video":
            return hf.LlavaNextVideoProcessor(
                hf.LlavaNextVideoVideoProcessor(**SHORT, do_sample_frames=False),
                hf.LlavaNextImageProcessor(**SHORT, **TILES),
                tokenizer(**media),
                **CLIP,
            )
        case "llava_onevision":
            return hf.LlavaOnevisionProcessor(
                hf.LlavaOnevisionImageProcessor(**FIXED, **TILES),
                tokenizer(**media),
                hf.LlavaOnevisionVideoProcessor(**FIXED, do_sample_frames=False),
                num_image_tokens=16,
                vision_feature_select_strategy="full",
            )
        case "video_llava":
            return hf.VideoLlavaProcessor(
                hf.VideoLlavaImageProcessor(**SHORT),
                hf.VideoLlavaVideoProcessor(**SHORT, do_sample_frames=False),
                tokenizer(**media),
                **CLIP,
            )
        case key if key in QWEN:
            kind, film = {
                "qwen2_vl": (hf.Qwen2VLProcessor, hf.Qwen2VLVideoProcessor),
                "qwen2_5_vl": (hf.Qwen2_5_VLProcessor, hf.Qwen2VLVideoProcessor),
                "lfm3_vl": (getattr(hf, "Lfm3VlProcessor", None), hf.Qwen3VLVideoProcessor),
            }.get(key, (hf.Qwen3VLProcessor, hf.Qwen3VLVideoProcessor))
            vision = {f"vision_{side}_token": name for side, name in BORDER.items()}
            return kind(
                hf.Qwen2VLImageProcessor(**PACKED),
                tokenizer(**media, **vision),
                film(**PACKED, do_sample_frames=False),
            )
        case "internvl":
            around = {f"{side}_image_token": name for side, name in BORDER.items()}
            return hf.InternVLProcessor(
                hf.GotOcr2ImageProcessor(**FIXED, crop_to_patches=True, min_patches=1, max_patches=4),
                tokenizer(context_image_token="<image>", video_token="<video>", **around),
                hf.InternVLVideoProcessor(**FIXED, do_sample_frames=False),
                image_seq_length=16,
            )
        case "idefics3" | "smolvlm":
            own = {"max_image_size": {"longest_edge": SIDE}, "do_resize": False}
            if key == "idefics3":
                return hf.Idefics3Processor(hf.Idefics3ImageProcessor(**own), tokenizer(), image_seq_len=16)
            film = hf.SmolVLMVideoProcessor(**FIXED, max_image_size=own["max_image_size"], do_sample_frames=False)
            words = tokenizer(**media, fake_image_token=BORDER["start"], global_image_token="<global-img>")
            return hf.SmolVLMProcessor(hf.SmolVLMImageProcessor(**own), words, film, image_seq_len=16)
        case "gemma3":
            around = {"boi_token": BORDER["start"], "eoi_token": BORDER["end"]}
            return hf.Gemma3Processor(
                hf.Gemma3ImageProcessor(**FIXED), tokenizer(image_token="<image>", **around), image_seq_length=16
            )
        case "paligemma" | "paligemma2":
            images = hf.SiglipImageProcessor(**FIXED)
            images.image_seq_length = 16
            return hf.PaliGemmaProcessor(images, tokenizer(**media))


def written(key: str, modality: str) -> str:
    """How a picture or video is asked for in a prompt."""
    if key in QWEN:
        around = "{start}<" + modality + ">{end}"
    elif key == "gemma3":
        around = "{start}"
    elif "llava" in key:
        around = "<" + modality + ">\n"
    else:
        around = "<" + modality + ">"
    return around.format(**BORDER)


def prompt(key: str, names: list[str]) -> str:
    media = [written(key, "video" if name == "v" else "image") for name in names]
    if key.startswith("paligemma"):
        return "".join(media) + f"{WORD}"
    return f"<s> {WORD} " + f" {WORD} ".join(media) + f" {WORD}"
