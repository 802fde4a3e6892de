"""Models of a few weights, drawn at random, as users have them: ONNX files, and folders of Hugging Face."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "the", "picture", "frog", "of", "two", "on", "left", "red", "green")
IMAGE_DIM, TEXT_DIM, AUDIO_DIM = 6, 5, 4
SIDE = 24
RATE = 8_000

FLOAT, HALF, BYTES, INTEGERS = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8, TensorProto.INT64


def weights(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def save(
    path: Path,
    nodes: Sequence[Any],
    inputs: Mapping[str, tuple[int, Sequence[Any]]],
    outputs: Mapping[str, Sequence[Any]],
    constants: Mapping[str, NDArray[Any]],
    kind: int = FLOAT,
) -> Path:
    """Write an ONNX model."""
    graph = helper.make_graph(
        list(nodes),
        "tiny",
        [helper.make_tensor_value_info(name, *of) for name, of in inputs.items()],
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


def image_model(
    path: Path, *, batch: Any = "n", layout: str = "NCHW", kind: int = FLOAT, seed: int = 0, side: Any = SIDE
) -> Path:
    """A convolution to (n, 6, h, w), "map", and its means, "pooled"."""
    shape = [batch, 3, side, side] if layout == "NCHW" else [batch, side, side, 3]
    nodes = [helper.make_node("Cast", ["pixels"], ["floats"], to=FLOAT)]
    nodes += [helper.make_node("Transpose", ["floats"], ["first"], perm=[0, 3, 1, 2])] if layout == "NHWC" else []
    nodes += [
        helper.make_node("Conv", ["floats" if layout == "NCHW" else "first", "w"], ["map"], strides=[4, 4]),
        helper.make_node("GlobalAveragePool", ["map"], ["means"]),
        helper.make_node("Flatten", ["means"], ["pooled"]),
    ]
    outputs = {"map": [batch, IMAGE_DIM, None, None], "pooled": [batch, IMAGE_DIM]}
    return save(path, nodes, {"pixels": (kind, shape)}, outputs, {"w": weights(IMAGE_DIM, 3, 4, 4, seed=seed)})


def text_model(path: Path, *, tokens: Any = "t", seed: int = 0, extra: str = "") -> Path:
    """A vector a token, less where it is masked, and a word of context, so that padding would be seen."""
    inputs = {name: (INTEGERS, ["n", tokens]) for name in ("input_ids", "attention_mask", *([extra] if extra else []))}
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["vectors"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=FLOAT),
        helper.make_node("Unsqueeze", ["mask", "axis"], ["column"]),
        helper.make_node("Mul", ["vectors", "column"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "tokens_axis"], ["context"], keepdims=1),
        helper.make_node("Add", ["masked", "context"], ["last_hidden_state"]),
    ]
    constants: dict[str, NDArray[Any]] = {
        "table": weights(len(WORDS), TEXT_DIM, seed=seed),
        "axis": np.array([2], np.int64),
        "tokens_axis": np.array([1], np.int64),
    }
    return save(path, nodes, inputs, {"last_hidden_state": ["n", tokens, TEXT_DIM]}, constants)


def audio_model(path: Path, *, samples: Any = "s") -> Path:
    """A convolution over samples, (n, frames, 4)."""
    nodes = [
        helper.make_node("Unsqueeze", ["samples", "axis"], ["channel"]),
        helper.make_node("Conv", ["channel", "w"], ["frames"], strides=[80]),
        helper.make_node("Abs", ["frames"], ["strengths"]),
        helper.make_node("Transpose", ["strengths"], ["out"], perm=[0, 2, 1]),
    ]
    constants: dict[str, NDArray[Any]] = {"w": weights(AUDIO_DIM, 1, 160), "axis": np.array([1], np.int64)}
    return save(path, nodes, {"samples": (FLOAT, ["n", samples])}, {"out": ["n", None, AUDIO_DIM]}, constants)


def tokenizer(folder: Path, most: int = 16) -> None:
    """Write tokenizer.json and tokenizer_config.json: words of lower case between [CLS] and [SEP]."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    write(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": most, **names},
    )


def write(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), "utf-8")
    return path


CLIP_PICTURES = {
    "size": {"shortest_edge": 32},
    "crop_size": {"height": 32, "width": 32},
    "do_center_crop": True,
    "image_mean": [0.48, 0.45, 0.4],
    "image_std": [0.26, 0.26, 0.27],
    "image_processor_type": "CLIPImageProcessor",
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "rescale_factor": 1 / 255,
    "resample": 3,
}
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
"""Of a transformer."""

TEXTS = {**SMALL, "vocab_size": len(WORDS), "max_position_embeddings": 16, "pad_token_id": 0}


def clip(folder: Path, seed: int = 0) -> Path:
    """CLIP, with pictures of 32 pixels."""
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig(
        text_config={**TEXTS, "bos_token_id": 2, "eos_token_id": 3},
        vision_config={**SMALL, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    return _saved(CLIPModel, config, folder, CLIP_PICTURES, seed)


def siglip(folder: Path) -> Path:
    """SigLIP, whose pictures are stretched and whose texts are padded."""
    from transformers import SiglipConfig, SiglipModel

    config = SiglipConfig(
        text_config={**TEXTS, "projection_size": 32, "eos_token_id": 3, "bos_token_id": 2},
        vision_config={**SMALL, "image_size": 32, "patch_size": 8},
    )
    pictures = {
        **CLIP_PICTURES,
        "size": {"height": 32, "width": 32},
        "do_center_crop": False,
        "image_processor_type": "SiglipImageProcessor",
    }
    return _saved(SiglipModel, config, folder, pictures)


def dinov2(folder: Path) -> Path:
    """DINOv2, which gets the middle of a larger picture."""
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(**SMALL, image_size=28, patch_size=7)
    pictures = {
        **CLIP_PICTURES,
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 28, "width": 28},
        "image_processor_type": "BitImageProcessor",
    }
    return _saved(Dinov2Model, config, folder, pictures, tokens=False)


def sentences(folder: Path) -> Path:
    """BERT as sentence-transformers saves it: the mean over tokens, of length 1."""
    from transformers import BertConfig, BertModel

    _saved(BertModel, BertConfig(**TEXTS), folder, None)
    kind = "sentence_transformers.models"
    modules = ((0, "", "Transformer"), (1, "1_Pooling", "Pooling"), (2, "2_Normalize", "Normalize"))
    write(
        folder / "modules.json", [{"idx": n, "name": str(n), "path": p, "type": f"{kind}.{k}"} for n, p, k in modules]
    )
    write(folder / "sentence_bert_config.json", {"max_seq_length": 12, "do_lower_case": False})
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    write(folder / "1_Pooling" / "config.json", pooling)
    (folder / "2_Normalize").mkdir()
    return folder


def wav2vec2(folder: Path) -> Path:
    """wav2vec 2.0, which takes samples."""
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    config = Wav2Vec2Config(
        **SMALL,
        conv_dim=(16, 16),
        conv_kernel=(10, 8),
        conv_stride=(5, 4),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        vocab_size=8,
    )
    _saved(Wav2Vec2Model, config, folder, None, tokens=False)
    Wav2Vec2FeatureExtractor(sampling_rate=16_000, do_normalize=True).save_pretrained(folder)
    return folder


def clap(folder: Path, fused: bool = False) -> Path:
    """CLAP, which takes spectrograms of 48 kHz; the fused one several of a sound that is too long."""
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

    config = ClapConfig(
        text_config={
            **TEXTS,
            "projection_dim": 16,
            "bos_token_id": 2,
            "eos_token_id": 3,
            "max_position_embeddings": 20,
        },
        audio_config={
            "spec_size": 64,
            "num_mel_bins": 16,
            "patch_size": 4,
            "patch_stride": (4, 4),
            "window_size": 4,
            "hidden_size": 16,
            "patch_embeds_hidden_size": 8,
            "depths": [1, 1],
            "num_attention_heads": [2, 2],
            "num_hidden_layers": 2,
            "projection_dim": 16,
            "enable_fusion": fused,
            "fusion_type": "aff_2d" if fused else None,
        },
        projection_dim=16,
    )
    _saved(ClapModel, config, folder, None)
    truncation = "fusion" if fused else "rand_trunc"
    extractor = ClapFeatureExtractor(feature_size=16, max_length_s=2, hop_length=1500, truncation=truncation)
    extractor.save_pretrained(folder)
    return folder


def _saved(kind: Any, config: Any, folder: Path, pictures: Any, seed: int = 0, tokens: bool = True) -> Path:
    import torch

    torch.manual_seed(seed)
    kind(config).eval().save_pretrained(folder)
    if pictures:
        write(folder / "preprocessor_config.json", pictures)
    if tokens:
        tokenizer(folder)
    return folder
