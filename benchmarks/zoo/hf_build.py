"""Small transformers models from their configuration classes: one set of sizes for all, inputs by name.

Sizes differ from each other on purpose (hidden 48, feed-forward 80, head 16): where they are equal, a rule that takes
one dimension for another passes unseen.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.zoo.case import Build, Case

__all__ = ["Row", "batch_only", "builder", "installed", "rows"]

Config = Any
Dims = Literal["sequence", "batch", "none"]


@dataclass(frozen=True)
class Row:
    """How one model class is built and called, as far as it differs from the common case.

    `inputs` are names of INPUTS separated by spaces; `config` sets attributes of the configuration, those of a nested
    one after a dot (`text_config.hidden_size`); `dims` says what is dynamic: batch and sequence, batch, or nothing.
    `static` says why not all is; `attention` is an attention implementation other than the default one.
    """

    inputs: str = "pixel_values"
    config: Mapping[str, Any] = field(default_factory=dict)
    dims: Dims = "sequence"
    static: str = ""
    attention: str | None = None


def rows(names: str, inputs: str = "pixel_values", **config: Any) -> dict[str, Row]:
    """The same row for every class named, separated by spaces."""
    return dict.fromkeys(names.split(), Row(inputs, config))


def batch_only(table: Mapping[str, Row]) -> dict[str, Row]:
    """The table with nothing dynamic but the batch."""
    return {name: replace(row, dims="batch") if row.dims == "sequence" else row for name, row in table.items()}


# Names that configuration classes have for the same thing, and the size that it gets.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "hidden_dim"), 48),
    **dict.fromkeys(("attention_dim", "dim_model", "emb_dim", "attention_hidden_size"), 48),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "n_inner", "d_inner", "dim_ff", "mlp_dim"), 80),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 80),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "layers"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_encoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "num_query_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads", "attention_heads"), 4),
    **dict.fromkeys(("num_encoder_attention_heads", "num_decoder_attention_heads"), 4),
    "num_key_value_heads": 2,
    **dict.fromkeys(("head_dim", "d_kv", "attention_head_size"), 16),
    "moe_intermediate_size": 40,
    "rotary_dim": 8,
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk"), 2),
    **dict.fromkeys(("projection_dim", "projection_size"), 40),
    **dict.fromkeys(("vocab_size", "n_vocab", "text_vocab_size"), 100),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length"), 64),
    **dict.fromkeys(("max_source_positions", "max_target_positions"), 64),
    **dict.fromkeys(("layerdrop", "encoder_layerdrop", "decoder_layerdrop"), 0.0),
    **dict.fromkeys(("sliding_window", "attention_window"), 4),
    # Mixtures of experts, latent attention, state spaces.
    **dict.fromkeys(("shared_expert_intermediate_size", "shared_intermediate_size"), 36),
    **dict.fromkeys(("expert_ffn_hidden_size", "moe_shared_expert_intermediate_size"), 40),
    **dict.fromkeys(("ffn_hidden_size", "feed_forward_size", "intermediate_size_mlp"), 80),
    **dict.fromkeys(("n_shared_experts", "first_k_dense_replace", "topk_group"), 1),
    "n_group": 2,
    "q_lora_rank": 24,
    "kv_lora_rank": 20,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 16,
    "hidden_size_per_layer_input": 20,
    "vocab_size_per_layer_input": 100,
    **dict.fromkeys(("state_size", "mamba_d_state"), 8),
    "mamba_n_heads": 4,
    "mamba_d_ssm": 96,
    **dict.fromkeys(("chunk_size", "mamba_chunk_size"), 4),
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 12,
    "linear_num_value_heads": 4,
    "linear_value_head_dim": 16,
    "use_mamba_kernels": False,
    "image_size": 32,
    "patch_size": 8,
    "num_mel_bins": 20,
    "num_labels": 5,
    "use_cache": False,
    # Attention over weights of the usual 0.02 is uniform, whatever becomes of queries and keys.
    **dict.fromkeys(("initializer_range", "init_std"), 0.15),
    # Within the small vocabulary.
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
}  # fmt: skip

ALWAYS = ("num_labels", "pad_token_id", "bos_token_id", "eos_token_id")
"""Settings of the base class, which older configuration classes take without naming them."""


def _ids(config: Config) -> Tensor:
    return torch.randint(3, 100, (2, 9))


def _padding(config: Config) -> Tensor:
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, -2:] = 0
    return mask


def _image(config: Config) -> Tensor:
    vision = _first(config, "vision_config", "image_config", "encoder", "backbone_config")
    sizes = (getattr(config, "zoo_image", None), getattr(config, "image_size", None), getattr(vision, "image_size", 64))
    size = next(s for s in sizes if s)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    channels = getattr(vision if vision is not None else config, "num_channels", 3)
    return torch.randn(2, channels if isinstance(channels, int) else 3, height, width)


def _first(config: Config, *names: str) -> Any:
    return next((getattr(config, n) for n in names if getattr(config, n, None) is not None), None)


def _frames(config: Config) -> Tensor:
    return torch.randn(2, 4, 3, *_image(config).shape[-2:])


def _with_image_tokens(config: Config) -> Tensor:
    """Text with as many image tokens in each row as the model makes features of an image (`zoo_image_tokens`)."""
    text = config.get_text_config()
    token = _first(config, "zoo_image_token", "image_token_id", "image_token_index")
    ids = torch.randint(3, min(90, text.vocab_size), (2, config.zoo_image_tokens + 6))
    ids[:, 2 : 2 + config.zoo_image_tokens] = token
    return ids


def _boxes(config: Config) -> Tensor:
    corners = torch.randint(0, 500, (2, 9, 2))
    return torch.cat([corners, corners + torch.randint(1, 400, (2, 9, 2))], dim=-1)


def _mel(config: Config) -> Tensor:
    return torch.randn(2, config.num_mel_bins, 2 * config.max_source_positions)


def _flattened_patches(config: Config) -> Tensor:
    """Patches with their row and column (from 1) in front."""
    places = torch.cartesian_prod(torch.arange(1.0, 3.0), torch.arange(1.0, 4.0)).expand(2, -1, -1)
    return torch.cat([places, torch.randn(2, 6, config.vision_config.patch_embed_hidden_size)], dim=-1)


def _image_places(config: Config) -> Tensor:
    mask = torch.zeros(2, config.zoo_image_tokens + 6, dtype=torch.long)
    mask[:, 2 : 2 + config.zoo_image_tokens] = 1
    return mask


INPUTS: dict[str, Callable[[Config], Tensor]] = {
    "input_ids": _ids,
    "attention_mask": _padding,
    "token_type_ids": lambda c: torch.randint(0, 2, (2, 9)),
    "decoder_input_ids": lambda c: torch.randint(3, 100, (2, 7)),
    "pixel_values": _image,
    "pixel_values_videos": lambda c: torch.randn(2, 4, 3, 32, 32),
    "input_points": lambda c: torch.rand(2, 1, 2, 2) * 60,
    "position_ids": lambda c: torch.arange(9).repeat(2, 1),
    "bbox": _boxes,
    "flattened_patches": _flattened_patches,
    "noise_sequence": lambda c: torch.randn(2, 32, c.model_in_channels),
    "noise": lambda c: torch.rand(2, (c.image_size // c.patch_size) ** 2),
    "spectrogram": lambda c: torch.randn(2, 12, c.model_in_dim),
    "image": _image,
    "input_values": lambda c: torch.randn(2, 400),
    "input_features": lambda c: torch.randn(2, 32, 20),
    "inputs": lambda c: torch.randint(3, 100, (2, 9)),
    "past_values": lambda c: torch.randn(2, 32, 3),
    "states": lambda c: torch.randn(2, 6, c.state_dim),
    "actions": lambda c: torch.randn(2, 6, c.act_dim),
    "rewards": lambda c: torch.randn(2, 6, 1),
    "returns_to_go": lambda c: torch.randn(2, 6, 1),
    "timesteps": lambda c: torch.arange(6).repeat(2, 1),
    "visual_feats": lambda c: torch.randn(2, 5, c.visual_feat_dim),
    "visual_pos": lambda c: torch.rand(2, 5, 4),
    "visual_embeds": lambda c: torch.randn(2, 5, c.visual_embedding_dim),
    "decoder_input_values": lambda c: torch.randn(2, 6, c.num_mel_bins),
}
# Other inputs by the same name as one above: after a colon in a row, "pixel_values:frames".
VARIANTS: dict[str, Callable[[Config], Tensor]] = {
    "input_ids:image": _with_image_tokens,
    "input_ids:whole": lambda c: torch.randint(3, 100, (2, c.zoo_length)),
    "attention_mask:image": lambda c: torch.ones(2, c.zoo_image_tokens + 6, dtype=torch.long),
    "image_embeds_position_mask:image": _image_places,
    "attention_mask:whole": lambda c: torch.ones(2, c.zoo_length, dtype=torch.long),
    "pixel_values:frames": _frames,
    "input_values:frames": lambda c: torch.randn(2, c.max_length, c.num_mel_bins),
    "pixel_values:images": lambda c: _image(c)[:, None],
    "pixel_values:segments": lambda c: torch.randn(2, 3, 32, 32),
    "prompt_pixel_values:segments": lambda c: torch.randn(2, 3, 32, 32),
    "prompt_masks:segments": lambda c: torch.randn(2, 3, 32, 32),
    "bbox:unit": lambda c: torch.rand(2, 9, 4),
    "input_features:mel": _mel,
    "input_features:bins": lambda c: torch.randn(2, 32, 16),
    "input_features:spectrogram": lambda c: torch.randn(2, 1, c.zoo_length, c.audio_config.num_mel_bins),
    "input_values:whole": lambda c: torch.randn(2, c.zoo_length),
    "input_values:channels": lambda c: torch.randn(2, 1, c.zoo_length),
}

TARGET = ("decoder_input_ids",)
SEQUENCE = ("input_ids", "attention_mask", "token_type_ids", "bbox", "position_ids")


def builder(name: str, row: Row) -> Build:
    """A function that builds the class `name` of the installed transformers."""

    def build() -> Case:
        torch.manual_seed(0)
        model, config = _model(name, row)
        kwargs = {part.split(":")[0]: _input(part, config) for part in row.inputs.split()}
        dims = {key: _dynamic(key, row.dims) for key in kwargs}
        return Case(model.eval(), (), kwargs, None if row.dims == "none" else dims, row.static)

    return build


def installed() -> frozenset[str]:
    """The names that the installed transformers has, without importing a single model."""
    import transformers

    return frozenset(dir(transformers))


def _model(name: str, row: Row) -> tuple[nn.Module, Config]:
    import transformers

    cls = getattr(transformers, name)
    extra = {k: v for k, v in row.config.items() if k.startswith("zoo_")}
    config = small(cls.config_class, {k: v for k, v in row.config.items() if k not in extra})
    for part in _parts(config):
        if hasattr(part, "use_cache"):
            part.use_cache = False
    chosen = row.attention is not None
    model = cls._from_config(config, attn_implementation=row.attention) if chosen else cls(config)
    for key, value in extra.items():
        setattr(config, key, value)
    if hasattr(model, "set_experts_implementation") and model._can_set_experts_implementation():
        model.set_experts_implementation("batched_mm")  # the grouped kernel has no float64
    caching = inspect.signature(model.forward).parameters.get("use_cache")
    if caching is not None and caching.default is True:  # the configuration is not asked
        model.forward = functools.partial(model.forward, use_cache=False)
    return model, config


def _parts(config: Config) -> list[Config]:
    """The configuration and those nested in it, named as such by its class or not."""
    return [
        config,
        *(part for value in vars(config).values() if hasattr(value, "sub_configs") for part in _parts(value)),
    ]


def small(config_class: type[Any], overrides: Mapping[str, Any]) -> Config:
    """The configuration with the sizes above wherever it names them, and with `overrides`."""
    return config_class(**_settings(config_class, overrides))


def _settings(config_class: type[Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    known = set(inspect.signature(config_class).parameters)
    settings = {k: v for k, v in SIZES.items() if k in known or k in ALWAYS}
    inside = {*_nested_classes(config_class), *(k.split(".")[0] for k in overrides if "." in k)}
    nested = {k: _nested(config_class, k, overrides) for k in sorted(inside) if k not in overrides}
    own = {k: v for k, v in overrides.items() if "." not in k}
    return {**settings, **{k: v for k, v in nested.items() if v is not None}, **own}


def _nested_classes(config_class: type[Any]) -> dict[str, type[Any]]:
    """The classes of nested configurations; none where they depend on the instance (a backbone to be named)."""
    found = config_class.sub_configs
    return {} if isinstance(found, property) else dict(found)


def _nested(config_class: type[Any], key: str, overrides: Mapping[str, Any]) -> dict[str, Any] | None:
    """The settings of a nested configuration, with the model type that says which class it is of.

    None where there is none unless one is named (the backbone of a hybrid).
    """
    import transformers

    inner = {k.removeprefix(f"{key}."): v for k, v in overrides.items() if k.startswith(f"{key}.")}
    if "model_type" in inner:
        cls = transformers.CONFIG_MAPPING[inner["model_type"]]
    else:
        cls = _nested_classes(config_class)[key]
    if cls is transformers.AutoConfig:
        default = getattr(config_class(), key)
        if default is None:
            return None
        cls = type(default)
    return {**_settings(cls, inner), "model_type": cls.model_type}


def _input(part: str, config: Config) -> Tensor:
    make = VARIANTS.get(part) or INPUTS[part]
    return make(config)


def _dynamic(name: str, dims: Dims) -> dict[int, str]:
    if dims == "sequence" and name in SEQUENCE:
        return {0: "batch", 1: "sequence"}
    if dims == "sequence" and name in TARGET:
        return {0: "batch", 1: "target_sequence"}
    return {0: "batch"}
