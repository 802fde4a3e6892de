from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mmembed.encoders import Encoder, resolve
from mmembed.encoders import text as module
from mmembed.encoders.text import NGRAMS, SIZES, VECTORS, ngram_sums
from mmembed.errors import EncodeError, UsageError
from mmembed.modalities.text import Text

TEXTS = ["A frog.", "Une grenouille à l'eau", "Лягушка", "青蛙。", "カエル", "🐸", "!?", "x", "<s>", "एक मेंढक", "e" * 99]
LONG = "Frogs leap, quite far: number " + " ".join(f"{i} and «Ünïcode» {i % 7}." for i in range(1700))
KNOWN_PLACES = [
    [48, 95, 137, 184, 253, 255, 295, 335, 363, 377, 412, 431, 459, 463],
    [31, 83, 95, 127, 230, 268, 315, 327, 379, 400, 401, 402, 444, 480],
]
KNOWN_SIGNS = [[1, -1, -1, 1, -1, -1, -1, -1, -1, -1, 1, 1, 1, 1], [-1, 1, 1, -1, -1, 1, 1, 1, -1, 1, 1, -1, -1, -1]]
KNOWN_FEATURE = [0.0506931, -0.0680672, 0.0116937, 0.123872, 0.1889822]
BORDERS = {c: " " for first, last in module._BORDERS for c in range(first, last + 1)}
some_texts = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=30), min_size=1, max_size=6)


def slow_ngrams(text: str) -> NDArray[np.float64]:
    """Word by word, in Python's whole numbers."""
    words = text.casefold().translate(BORDERS).split(" ")
    sums: dict[int, float] = defaultdict(float)
    for word in filter(None, words):
        marked = f"\0{word}\0"
        grams = [marked[i : i + n] for n in SIZES for i in range(len(marked) - n + 1)]
        for gram in grams:
            bits = sum((ord(c) + 1) * pow(0x9E3779B97F4A7C15, k, 2**64) for k, c in enumerate(gram)) % 2**64
            for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
                bits = (bits ^ bits >> 33) * factor % 2**64
            bits ^= bits >> 33
            sums[bits % NGRAMS] += (-1 if bits >> 63 else 1) / len(grams)
    result = np.zeros(NGRAMS)
    result[list(sums)] = list(sums.values())
    return result


def encoder() -> Encoder:
    """The built-in one: word vectors and n-grams side by side."""
    return resolve(Text(), "builtin")[1]


def test_features_have_the_shape_and_type_of_their_space() -> None:
    features = encoder().encode(TEXTS)
    assert features.shape == (len(TEXTS), encoder().space.dim) == (len(TEXTS), VECTORS + NGRAMS)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()
    np.testing.assert_allclose(np.linalg.norm(features[:, :VECTORS], axis=1), 1, rtol=1e-5)
    has_word = np.array([text != "!?" for text in TEXTS])
    np.testing.assert_allclose(np.linalg.norm(features[:, VECTORS:], axis=1), has_word, rtol=1e-5)


def test_word_vectors_are_those_of_wordllama() -> None:
    import wordllama

    folder = Path(wordllama.__file__).parent
    reference = wordllama.WordLlama.load(cache_dir=folder, disable_download=True)
    np.testing.assert_allclose(
        encoder().encode(TEXTS)[:, :VECTORS], reference.embed(TEXTS, norm=True), rtol=0, atol=2e-6
    )


def test_word_vectors_of_a_long_text_are_those_of_its_tokens_in_double_precision() -> None:
    """WordLlama itself adds tens of thousands of vectors in single precision, and is further off than this."""
    tokenizer, table = module._load()
    mean = table[tokenizer.encode(LONG, add_special_tokens=False).ids].astype(np.float64).mean(axis=0)
    actual = encoder().encode([LONG])[0, :VECTORS]
    np.testing.assert_allclose(actual, mean / np.linalg.norm(mean), rtol=0, atol=1e-6)


def test_ngrams_are_those_of_the_slow_way() -> None:
    np.testing.assert_allclose(ngram_sums(TEXTS), [slow_ngrams(text) for text in TEXTS], atol=1e-12)


@settings(deadline=None, max_examples=50)
@given(some_texts)
def test_ngrams_of_any_text_are_those_of_the_slow_way(texts: list[str]) -> None:
    np.testing.assert_allclose(ngram_sums(texts), [slow_ngrams(text) for text in texts], atol=1e-12)


def test_a_long_text_is_the_sum_of_its_words() -> None:
    """It is worked on in pieces, which changes nothing."""
    assert len(LONG) > 2 * module.BLOCK
    expected = slow_ngrams(LONG)
    expected = np.sign(expected) * np.sqrt(np.abs(expected))
    np.testing.assert_allclose(encoder().encode([LONG])[0, VECTORS:], expected / np.linalg.norm(expected), atol=1e-6)


def test_pieces_of_a_long_text_are_short_and_lose_only_spaces() -> None:
    for text in (LONG, "a" * 40_000, "a" * module.BLOCK + " b" * module.BLOCK, " " * 40_000, LONG[: module.BLOCK]):
        pieces = list(module._pieces(text))
        assert all(0 < len(piece) <= module.BLOCK for piece in pieces)
        assert "".join(pieces).replace(" ", "") == text.replace(" ", "")
    assert " ".join(module._pieces(LONG)) == LONG


def test_a_text_gives_the_same_bits_alone_and_in_any_batch() -> None:
    texts = [*TEXTS, LONG, *(f"number {i} of some" for i in range(2000)), LONG[:20_000], *TEXTS[::-1]]
    together = encoder().encode(texts)
    for row in [*range(14), 700, 1999, *range(len(texts) - 13, len(texts))]:
        assert encoder().encode(texts[row : row + 1]).tobytes() == together[row].tobytes(), texts[row][:40]
    assert encoder().encode(texts[::-1])[::-1].tobytes() == together.tobytes()


@settings(deadline=None, max_examples=30)
@given(some_texts)
def test_any_text_gives_finite_features_and_the_same_bits_alone(texts: list[str]) -> None:
    together = encoder().encode(texts)
    assert np.isfinite(together).all()
    for text, row in zip(texts, together, strict=True):
        assert encoder().encode([text]).tobytes() == row.tobytes()


def test_known_values_stay() -> None:
    """If this fails on purpose, the version of the space must change too."""
    assert encoder().space.version == "1+1"
    sums = ngram_sums(["frog", "Żaba"])
    assert [np.flatnonzero(row).tolist() for row in sums] == KNOWN_PLACES
    assert [np.sign(row[row != 0]).astype(int).tolist() for row in sums] == KNOWN_SIGNS
    assert np.unique(np.abs(sums[0])).tolist() == [0, 1 / 14]
    feature = encoder().encode(["A frog."])[0]
    np.testing.assert_allclose(feature[[0, 1, 2, 255, 256 + KNOWN_PLACES[0][0]]], KNOWN_FEATURE, atol=1e-6)


def test_case_and_punctuation_change_no_ngram_but_spelling_does() -> None:
    a, b, c = ngram_sums(["A frog, a FROG!", "(a) Frog\na frog", "a fog a frog"])
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 0.05


def test_languages_give_different_features_and_kindred_spellings_near_ones() -> None:
    names = ["frog", "grenouille", "Лягушка", "жаба", "青蛙", "カエル", "ضفدع", "개구리"]
    features = encoder().encode(names)
    for part in (features[:, :VECTORS], features[:, VECTORS:]):
        similar = part @ part.T
        assert similar[~np.eye(len(names), dtype=bool)].max() < 0.8
    near, far = encoder().encode(["grenouilles", "escargot"])[:, VECTORS:] @ features[1, VECTORS:]
    assert near > 0.6 > 0.3 > far


def test_meaning_is_in_the_word_vectors() -> None:
    cat, kitten, bridge = encoder().encode(["a cat", "the kitten", "a bridge"])[:, :VECTORS]
    assert cat @ kitten > cat @ bridge + 0.1


def test_an_empty_text_is_an_encode_error() -> None:
    with pytest.raises(EncodeError, match="text 1 of the batch is empty"):
        encoder().encode(["a", ""])


def test_the_encoder_is_a_small_value_without_its_weights() -> None:
    built_in = encoder()
    built_in.setup()
    loaded = module._load()
    built_in.setup()
    assert module._load() is loaded
    pickled = pickle.dumps(built_in)
    assert len(pickled) < 300
    assert pickle.loads(pickled) == built_in
    assert pickle.loads(pickled).encode(TEXTS).tobytes() == built_in.encode(TEXTS).tobytes()


def test_a_forked_worker_gives_the_same_bits_without_a_warning(capfd: pytest.CaptureFixture[str]) -> None:
    expected = encoder().encode(TEXTS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pytest's own threads, from Python 3.12 on
        with multiprocessing.get_context("fork").Pool(1) as pool:
            assert pool.apply(encoder().encode, (TEXTS,)).tobytes() == expected.tobytes()
    assert "fork" not in capfd.readouterr().err


def test_the_same_bits_in_another_process_that_does_not_import_wordllama() -> None:
    code = (
        "import sys; from mmembed.encoders import resolve; from mmembed.modalities.text import Text;"
        "assert 'tokenizers' not in sys.modules;"
        f"features = resolve(Text(), 'builtin')[1].encode({TEXTS!r}); assert 'wordllama' not in sys.modules;"
        "sys.stdout.buffer.write(features.tobytes())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    assert run.stdout == encoder().encode(TEXTS).tobytes()
    assert run.stderr == b""


def test_missing_or_other_weights_are_a_usage_error_that_names_the_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "wordllama" / "weights").mkdir(parents=True)
    (tmp_path / "wordllama" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "wordllama", raising=False)
    with pytest.raises(UsageError, match=r"can't read .*wordllama==0\.4"):
        module._file(*module._WEIGHTS)
    (tmp_path / "wordllama" / module._WEIGHTS[0]).write_bytes(b"other")
    with pytest.raises(UsageError, match=r"is not of wordllama==0\.4.*pip install"):
        module._file(*module._WEIGHTS)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(UsageError, match=r"not installed: pip install wordllama==0\.4"):
        module._file(*module._WEIGHTS)
