"""The thinkers of Qwen2.5-Omni and Qwen3-Omni: pictures beside sounds, and videos that take turns with theirs."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from transformers import (
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen3OmniMoeThinkerConfig,
    Qwen3OmniMoeThinkerForConditionalGeneration,
)

from .common import END, GLOBAL, IMAGE, NEWLINE, PAD, START, TILE, VIDEO, Case, Draw, Piece, gather, text
from .qwen import TOWER, Qwen2VL, rope

SOUND, SILENCE, HEARD = GLOBAL, NEWLINE, TILE  # around a sound, and the id of its placeholders
MELS, LONGEST = 16, 64  # bins and frames of a spectrogram
EARS = {
    "num_mel_bins": MELS,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "d_model": 24,
    "output_dim": 32,
    "max_source_positions": 64,
}
IDS = {
    "vision_start_token_id": START,
    "vision_end_token_id": END,
    "audio_start_token_id": SOUND,
    "audio_end_token_id": SILENCE,
    "pad_token_id": PAD,
}


class Qwen2_5Omni(Qwen2VL, key="qwen2_5_omni_thinker"):
    """(rows, columns, frames of a spectrogram that is heard beside); the sound of a video stands among its tokens."""

    brief = True
    model: Any = Qwen2_5OmniThinkerForConditionalGeneration
    shapes = [(8, 8, 0), (4, 12, 24), (8, 6, 0)]
    film_shape: Any = (4, 6, 4)
    frames_per_token: ClassVar[int] = 4

    def config(self, **variant: Any) -> Any:
        ids = {"image_token_index": IMAGE, "video_token_index": VIDEO, "audio_token_index": HEARD, **IDS}
        tower = {**TOWER, "window_size": 16, "fullatt_block_indexes": [1, 3]}
        words = text("qwen2_5_omni_text", **rope(1, 1, 2))
        ears = {**EARS, "n_window": 16}
        configs = {"vision_config": tower, "text_config": words, "audio_config": ears}
        return Qwen2_5OmniThinkerConfig(**{**configs, **ids, **variant})

    def picture(self, config: Any, shape: Any, alone: bool, draw: Draw) -> Piece:
        piece = super().picture(config, shape[:2], alone, draw)
        if shape[2]:
            piece.tokens.extend([SOUND] + [HEARD] * (shape[2] // self.frames_per_token) + [SILENCE])
            piece.payload.update(heard(draw, shape[2]))
        return piece

    def film(self, config: Any, shape: Any, draw: Draw) -> Piece:
        """Half of the video, its sound, the other half: what two seconds of video and of sound make of it."""
        piece = super().film(config, shape, draw)
        half, frames = piece.tokens[1 : 1 + piece.tokens.count(VIDEO) // 2], 40
        sound = [HEARD] * (frames // self.frames_per_token)
        piece.tokens[:] = [START, SOUND, *half, *sound, *half, SILENCE, END]
        piece.payload.update(heard(draw, frames), video_second_per_grid=torch.tensor([1.0]))
        return piece

    def collate(self, samples: list[list[Piece]], case: Case, config: Any) -> dict:
        out = super().collate(samples, case, config)
        del out["mm_token_type_ids"]
        for name in ("input_features", "feature_attention_mask", "video_second_per_grid"):
            out |= gather(samples, name)
        return out | ({"use_audio_in_video": True} if "pixel_values_videos" in out else {})


class Qwen3Omni(Qwen2_5Omni, key="qwen3_omni_moe_thinker"):
    """Features of two more tower blocks join the first two decoder layers; a token passes two of four experts."""

    model: Any = Qwen3OmniMoeThinkerForConditionalGeneration
    frames_per_token = 8

    def config(self, **variant: Any) -> Any:
        ids = {"image_token_id": IMAGE, "video_token_id": VIDEO, "audio_token_id": HEARD, **IDS}
        tower = {**TOWER, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 2]}
        experts: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
        words = text("qwen3_omni_moe_text", **experts, **rope(2, 1, 1, mrope_interleaved=True))
        ears = {**EARS, "n_window": 50, "n_window_infer": 800, "downsample_hidden_size": 8}
        configs = {"vision_config": tower, "text_config": words, "audio_config": ears}
        return Qwen3OmniMoeThinkerConfig(**{**configs, **ids, **variant})


def heard(draw: Draw, frames: int) -> dict:
    """A spectrogram (1, 16, 64) of which ``frames`` are real."""
    mask = (torch.arange(LONGEST) < frames).long()[None]
    return {"input_features": draw.pixels(1, MELS, LONGEST), "feature_attention_mask": mask}
