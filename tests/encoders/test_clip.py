"""Against open_clip itself, where it is installed: it needs torchvision, of which not every torch has a build."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import write

from mmembed.encoders import resolve
from mmembed.errors import UsageError
from mmembed.modalities.audio import Audio
from mmembed.modalities.image import Image
from mmembed.modalities.text import Text
from mmembed.testing import check_encoder, segments

CONFIG: dict[str, dict[str, Any]] = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    },
    "preprocess_cfg": {"mean": [0.48, 0.45, 0.4], "std": [0.26, 0.26, 0.27], "resize_mode": "squash"},
}


def test_pictures_and_texts_of_a_folder_share_a_space(tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip", exc_type=(ImportError, RuntimeError))  # type: ignore[arg-type]
    import torch
    from safetensors.torch import save_file

    write(tmp_path / "open_clip_config.json", CONFIG)
    model = open_clip.CLIP(**CONFIG["model_cfg"]).eval()
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    modality, image = resolve(Image(), f"open_clip:{tmp_path}")
    _, text = resolve(Text(), f"open_clip:{tmp_path}")
    assert modality == Image(size=32, fit="stretch")
    assert image.space == text.space and image.space.dim == 16
    for encoder in (image, text):
        check_encoder(encoder)
    with torch.inference_mode():
        tokens = open_clip.get_tokenizer("ViT-B-32", context_length=16)(["a frog"])
        np.testing.assert_allclose(text.encode(["a frog"]), model.encode_text(tokens).numpy(), atol=1e-5)
    assert image.encode(segments("image", image.input)).shape[1] == 16


def test_what_it_cannot_do_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="open_clip: encodes image and text"):
        resolve(Audio(), f"open_clip:{tmp_path}")
    with pytest.raises(UsageError, match=r"has no \*\.safetensors"):
        resolve(Image(), f"open_clip:{tmp_path}")
    with pytest.raises(UsageError, match="is no folder; it must hold open_clip_config.json"):
        resolve(Image(), f"open_clip:{tmp_path / 'nowhere'}")
