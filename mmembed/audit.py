"""How much of the texts, and of what is known of records, an attacker can tell from embeddings; and what noise, or
fewer dimensions, take from that and from retrieval.

What is measured are these attacks and no others: figures near chance prove nothing, and none of the knobs gives
differential privacy.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from mmembed.config import Config, Parts, from_json
from mmembed.dataset import Dataset
from mmembed.errors import UsageError
from mmembed.evaluate import Exam, columns, read_exam
from mmembed.index import scoring_of
from mmembed.linear import normalize_rows
from mmembed.metrics import mean_bounds, per_query
from mmembed.modalities.text import Text
from mmembed.project import load_maps, noisy
from mmembed.splits import HELD_OUT
from mmembed.steps import encode_segments, normalize_segments, segment_records
from mmembed.tables import vectors_from_arrow
from mmembed.types import Batch, Media, Record

NOISE = (0.2, 0.5, 1.0, 2.0)
"""Of the trials: as of `mmembed.project.noisy`."""

DIMS = (2, 4, 8)
"""Of the trials: only so much of all dimensions, the first ones."""

CAPTIONS, RECORDS, TRAINED = 5000, 2000, 5000
"""At most: captions from outside, records that are attacked, and records that probes learn from."""

KEYS, CLASSES, OF_A_CLASS, WORDS = 10, 50, 5, 20
"""Of the probes, at most: keys of the metadata, values of one; at least: records of a value; most: words."""

ORDERED = ("cca", "pmi", "pls", "ridge")
"""Ways of fitting whose first dimensions matter most."""

_RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
_TRIED = 5  # every fifth record that a probe learns from chooses its ridge

Array = NDArray[np.float32]
Change = Callable[[Array], Array]


@dataclass(frozen=True, eq=False)
class Records:
    """The records of one modality.

    Attributes:
        ids: n.
        held_out: bool (n,).
        vectors: one embedding each, float32 (n, k).
        texts: the text of each, by id, of the modality text: all its segments.
    """

    ids: Sequence[str]
    held_out: NDArray[np.bool_]
    vectors: Array
    texts: Mapping[str, str]


def audit(dataset: Dataset, captions: Path | None = None) -> dict[str, Any]:
    """What attackers learn who have the embeddings of held-out records, the encoders, the maps, and other captions.

    Args:
        captions: a file of texts from outside, one a line; None: those of the records that the maps were fitted to.

    Returns:
        JSON values: "inversion" and "probes", a row for each modality and attack; "trials", a row for each knob.

    Raises:
        UsageError: there are no embeddings of texts, no held-out record has a text, or the captions can't be read.
        DatasetError: a file is damaged.
    """
    if "text" not in dataset.modalities("project"):
        raise UsageError(
            f"{dataset.root} has no embeddings of texts: an audit asks what of texts can be told from them"
        )
    records = {name: _records(dataset, name) for name in dataset.modalities("project")}
    texts = {id: text for id, text in records["text"].texts.items() if text}
    fitted = [texts[id] for id, held in zip(records["text"].ids, records["text"].held_out) if not held and id in texts]
    outside = _spread(list(dict.fromkeys(_read_lines(captions) if captions else fitted)), CAPTIONS)
    attacked = {id for id, held in zip(records["text"].ids, records["text"].held_out) if held and id in texts}
    if not attacked or not outside:
        raise UsageError(
            f"{dataset.root} has no {'held-out record with a text' if outside else 'caption to guess from'}: "
            "build it with --holdout above 0, of more records"
        )
    own = _embedded(dataset, {id: texts[id] for id in _spread(sorted(attacked), RECORDS)})
    guesses = _embedded(dataset, dict(zip(map(str, range(len(outside))), outside)))
    outside = [outside[int(row)] for row in guesses]
    captions_known = set(outside)
    known = _Known(texts, outside, np.stack(list(guesses.values())), own)
    metadata, exam = _metadata(dataset), read_exam(dataset)
    k = records["text"].vectors.shape[1]
    trials: list[tuple[dict[str, Any], Change, Change]] = [({"noise": 0.0, "dim": k}, _same, _same)]
    plain = scoring_of(dataset).spectrum is None
    for sigma in NOISE if plain else ():
        trials.append(({"noise": sigma, "dim": k}, _with_noise(sigma), _same))
    method = json.loads(dataset.read("maps/fit.json"))["method"]
    for part in DIMS if plain and method in ORDERED else ():
        if k // part:
            trials.append(({"noise": 0.0, "dim": k // part}, _first(k // part), _first(k // part)))
    found = [
        (knobs, _attacks(records, known, metadata, change, of_captions), _recall(exam, change))
        for knobs, change, of_captions in trials
    ]
    return {
        "captions": str(captions) if captions else "texts of the records that were fitted",
        "outside": len(outside),
        "copies": float(np.mean([texts[id] in captions_known for id in own])),
        "noise": from_json(Config(), dict(dataset.config)).project.noise,
        **found[0][1],
        "trials": [{**knobs, **_summary(attacks), "recall@10": recall} for knobs, attacks, recall in found],
    }


@dataclass(frozen=True, eq=False)
class _Known:
    """What the attacker has, and what he is judged by.

    Attributes:
        texts: the true one by id.
        outside: captions, n.
        captions: their embeddings, float32 (n, k).
        own: the embedding of the true text by id, without noise, of those that are attacked.
    """

    texts: Mapping[str, str]
    outside: Sequence[str]
    captions: Array
    own: Mapping[str, Array]


def _attacks(
    records: Mapping[str, Records],
    known: _Known,
    metadata: Mapping[str, Mapping[str, Any]],
    change: Change,
    of_captions: Change,
) -> dict[str, Any]:
    """All attacks on embeddings that are changed."""
    inversion, probes = [], []
    for name, of in records.items():
        vectors = change(of.vectors)
        places = [place for place, id in enumerate(of.ids) if id in known.own and of.held_out[place]]
        if places:
            inversion.append(
                {"modality": name, **_invert([of.ids[p] for p in places], vectors[places], known, of_captions)}
            )
        probes += [{"modality": name, **row} for row in _probes(replace(of, vectors=vectors), known, metadata)]
    return {"inversion": inversion, "probes": probes}


def _invert(ids: Sequence[str], vectors: Array, known: _Known, of_captions: Change) -> dict[str, Any]:
    """The nearest caption from outside for each embedding, and how much of the true text it tells."""
    captions, own = of_captions(known.captions), of_captions(np.stack([known.own[id] for id in ids]))
    scores = vectors @ captions.T
    true = [known.texts[id] for id in ids]
    random = np.random.default_rng(0)
    bags = bags_of([*true, *known.outside])
    right, guesses = bags[: len(true)], bags[len(true) :]
    told = overlap(right, guesses[scores.argmax(axis=1)])
    by_chance = np.mean(
        [overlap(right, guesses[random.integers(0, len(captions), len(ids))]) for _ in range(5)], axis=0
    )
    same = np.array(known.outside)[np.newaxis] == np.array(true)[:, np.newaxis]
    first = np.einsum("ij,ij->i", vectors, own) > np.where(same, -np.inf, scores).max(axis=1)
    low, high = mean_bounds(told)
    return {
        "records": len(ids),
        "f1": float(told.mean()),
        "f1_low": low,
        "f1_high": high,
        "chance_f1": float(by_chance.mean()),
        "identified": float(first.mean()),
        "chance_identified": 1 / (len(captions) + 1),
    }


def bags_of(texts: Sequence[str]) -> csr_matrix:
    """How often each word is in each text, sparse (n, words); words are runs of letters and digits in lower case."""
    vocabulary: dict[str, int] = {}
    rows, words = [], []
    for row, text in enumerate(texts):
        for word in re.findall(r"\w+", text.lower()):
            rows.append(row)
            words.append(vocabulary.setdefault(word, len(vocabulary)))
    counts = np.ones(len(rows), np.float64)
    return csr_matrix((counts, (rows, words)), shape=(len(texts), max(1, len(vocabulary))))


def overlap(true: csr_matrix, guessed: csr_matrix) -> NDArray[np.float64]:
    """F1 of the words of each guess, float64 (n,): twice those in both over those of either."""
    both = np.asarray(true.minimum(guessed).sum(axis=1)).ravel()
    either = np.asarray(true.sum(axis=1) + guessed.sum(axis=1)).ravel()
    return np.asarray(np.divide(2 * both, either, out=np.zeros(len(both)), where=either > 0))


def _probes(of: Records, known: _Known, metadata: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What linear probes tell of a record: a value of its metadata, and words of its text."""
    learn = np.array(_spread([place for place, held in enumerate(of.held_out) if not held], TRAINED), np.intp)
    asked = np.array(_spread([place for place, held in enumerate(of.held_out) if held], RECORDS), np.intp)
    if len(learn) < 2 * _TRIED or not len(asked):
        return []
    rows = []
    for key in _keys(metadata):
        values = [metadata.get(id, {}).get(key) for id in of.ids]
        counts = Counter(values[place] for place in learn if values[place] is not None)
        classes = sorted((value for value, count in counts.items() if count >= OF_A_CLASS), key=str)
        numbers = np.array([classes.index(value) if value in classes else -1 for value in values])
        train, test = learn[numbers[learn] >= 0], asked[numbers[asked] >= 0]
        if 2 <= len(classes) <= CLASSES and len(test):
            right = _told_class(of.vectors, numbers, train, test)
            rows.append({"what": key, "classes": len(classes), "records": len(test), **right})
    texts = [known.texts.get(id, "") for id in of.ids]
    has = {place: set(re.findall(r"\w+", text.lower())) for place, text in enumerate(texts) if text}
    train, test = (np.array([place for place in places if place in has], np.intp) for places in (learn, asked))
    counts = Counter(word for place in train for word in has[int(place)])
    common = [word for word, n in counts.most_common() if 0.05 <= n / max(1, len(train)) <= 0.5][:WORDS]
    signs = np.array([[1.0 if word in has.get(place, ()) else -1.0 for word in common] for place in range(len(of.ids))])
    if common and len(train) >= 2 * _TRIED and len(test):
        told = _told_words(of.vectors, signs, train, test)
        if len(told):
            rows.append({"what": "words", "classes": len(told), "records": len(test), "auc": float(told.mean())})
    return rows


def _told_class(
    vectors: Array, numbers: NDArray[np.int64], train: NDArray[np.intp], test: NDArray[np.intp]
) -> dict[str, float]:
    """Balanced accuracy of a probe on records that it has not seen, its bounds, and chance."""
    count = int(numbers.max()) + 1
    signs = np.where(numbers[:, np.newaxis] == np.arange(count), 1.0, -1.0)
    weights = 1 / np.bincount(numbers[train], minlength=count)[numbers]  # classes count alike
    scores = probe(vectors, signs, train, test, weights, lambda found, rows: balanced(found, numbers[rows])[0])
    accuracy, (low, high) = balanced(scores, numbers[test])
    return {"accuracy": accuracy, "accuracy_low": low, "accuracy_high": high, "chance": 1 / count}


def _told_words(
    vectors: Array, signs: NDArray[np.float64], train: NDArray[np.intp], test: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Area under the ROC curve of each word that some of the records have, and some haven't."""
    weights = np.ones(len(vectors))
    scores = probe(
        vectors, signs, train, test, weights, lambda found, rows: float(np.mean(areas(found, signs[rows]) or [0]))
    )
    return np.array(areas(scores, signs[test]))


def probe(
    vectors: Array,
    targets: NDArray[np.float64],
    train: NDArray[np.intp],
    test: NDArray[np.intp],
    weights: NDArray[np.float64],
    goodness: Callable[[NDArray[np.float64], NDArray[np.intp]], float],
) -> NDArray[np.float64]:
    """Predictions of a weighted ridge regression for the test rows, float64 (t, m).

    Args:
        vectors: float32 (n, k).
        targets: float64 (n, m).
        weights: of each row, float64 (n,).
        goodness: of predictions for some rows: what the ridge is chosen by, on a part of the training rows.
    """
    chosen, tried = np.delete(train, slice(None, None, _TRIED)), train[::_TRIED]
    best = max(_RIDGES, key=lambda ridge: goodness(_ridge(vectors, targets, chosen, tried, weights, ridge), tried))
    return _ridge(vectors, targets, train, test, weights, best)


def _ridge(
    vectors: Array,
    targets: NDArray[np.float64],
    train: NDArray[np.intp],
    test: NDArray[np.intp],
    weights: NDArray[np.float64],
    ridge: float,
) -> NDArray[np.float64]:
    """(X'DX + r tr(X'DX)/k I)^-1 X'DY, applied; X and Y about their weighted means."""
    share = weights[train] / weights[train].sum()
    middle, level = share @ vectors[train], share @ targets[train]
    x, y = vectors[train] - middle, targets[train] - level
    gram = (x * share[:, np.newaxis]).T @ x
    size = len(gram)
    gram += np.eye(size) * (ridge * max(float(np.trace(gram)) / size, 1e-12))
    directions = np.linalg.solve(gram, (x * share[:, np.newaxis]).T @ y)
    return np.asarray((vectors[test] - middle) @ directions + level)


def balanced(scores: NDArray[np.float64], numbers: NDArray[np.int64]) -> tuple[float, tuple[float, float]]:
    """The mean over classes of the share of their rows whose highest score is their own; and its 95 % bounds."""
    right = scores.argmax(axis=1) == numbers
    there, counts = np.unique(numbers, return_counts=True)
    weights = len(numbers) / (len(there) * counts[np.searchsorted(there, numbers)])
    return float((right * weights).mean()), mean_bounds(right.astype(np.float64), weights)


def areas(scores: NDArray[np.float64], signs: NDArray[np.float64]) -> list[float]:
    """The area under the ROC curve for each column that has both signs: how often a positive row is above a negative
    one (Mann and Whitney's U)."""
    from scipy.stats import rankdata

    found = []
    for column, sign in zip(scores.T, signs.T, strict=True):
        positive = sign > 0
        above, below = int(positive.sum()), int((~positive).sum())
        if above and below:
            ranks = rankdata(column)[positive].sum()
            found.append(float((ranks - above * (above + 1) / 2) / (above * below)))
    return found


def _recall(exam: Exam, change: Change) -> float:
    """Mean recall@10 between modalities."""
    changed = {name: replace(of, vectors=change(of.vectors)) for name, of in exam.records.items()}
    dim = next(iter(changed.values())).vectors.shape[1]
    exam = replace(exam, records=changed, scoring=exam.scoring.first(dim))
    found = [
        float(per_query(exam.ask(query, target, "none").outcome())["recall@10"].mean())
        for query, target in permutations(changed, 2)
        if query in exam.queries_of(target)
    ]
    return float(np.mean(found)) if found else 0.0


def _summary(attacks: Mapping[str, Any]) -> dict[str, Any]:
    """One trial's attacks in a row."""
    inversion = {f"f1_{row['modality']}": row["f1"] for row in attacks["inversion"]}
    identified = {f"identified_{row['modality']}": row["identified"] for row in attacks["inversion"]}
    classes = [row["accuracy"] for row in attacks["probes"] if "accuracy" in row]
    words = [row["auc"] for row in attacks["probes"] if "auc" in row]
    return {
        **inversion,
        **identified,
        "accuracy": float(np.mean(classes)) if classes else None,
        "words_auc": float(np.mean(words)) if words else None,
    }


def _same(vectors: Array) -> Array:
    return vectors


def _with_noise(sigma: float) -> Change:
    def change(vectors: Array) -> Array:
        return noisy(vectors, sigma, np.random.default_rng(0).standard_normal(vectors.shape, np.float32))

    return change


def _first(dim: int) -> Change:
    return lambda vectors: normalize_rows(np.ascontiguousarray(vectors[:, :dim]))


def _records(dataset: Dataset, modality: str) -> Records:
    ids: list[str] = []
    splits: list[str] = []
    texts: dict[str, str] = {}
    vectors = [np.empty((0, dataset.modalities("project")[modality].dim), np.float32)]
    for _, table in dataset.tables(f"embeddings/{modality}"):
        ids += table["id"].to_pylist()
        splits += table["split"].to_pylist()
        vectors.append(vectors_from_arrow(table["embedding"]))
        if modality == "text":
            for id, text in zip(table["id"].to_pylist(), table["media"].to_pylist()):
                texts[id] = f"{texts[id]} {text}" if id in texts else text
    starts = np.array([row for row, id in enumerate(ids) if row == 0 or id != ids[row - 1]], np.int64)
    together = np.concatenate(vectors)
    means = scoring_of(dataset).means(together, starts) if len(starts) else together
    held_out = np.array([splits[row] == HELD_OUT for row in starts], bool)
    return Records([ids[row] for row in starts], held_out, means, texts)


def _metadata(dataset: Dataset) -> dict[str, dict[str, Any]]:
    """Of each record, the values of keys that a probe can learn."""
    kinds = dataset.stage("extract").summary["kinds"]
    keys = [key for key, kind in kinds.items() if kind in ("string", "bool", "int")]
    found: dict[str, dict[str, Any]] = {}
    for name in dataset.modalities("project"):
        for _, table in dataset.tables(f"embeddings/{name}"):
            if keys and "metadata" in table.column_names:
                for id, values in zip(table["id"].to_pylist(), table["metadata"].to_pylist()):
                    found.setdefault(id, {key: values.get(key) for key in keys})
    return found


def _keys(metadata: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Keys with 2 to CLASSES values, the first KEYS of them."""
    values: dict[str, set[Any]] = {}
    for row in metadata.values():
        for key, value in row.items():
            if value is not None and len(seen := values.setdefault(key, set())) <= CLASSES:
                seen.add(value)
    return [key for key, seen in sorted(values.items()) if 2 <= len(seen) <= CLASSES][:KEYS]


def _embedded(dataset: Dataset, texts: Mapping[str, str]) -> dict[str, Array]:
    """Embeddings of whole texts, float32 (k,), whatever filters say of them; without those that give none."""
    config = from_json(Config(), dict(dataset.config))
    cut, encoder = Parts(config.extract)["text"]
    assert isinstance(cut, Text)
    whole = replace(cut, words=0, overlap=0, min_words=0, max_words=0, languages=())
    linear_map = load_maps(dataset)["text"]
    encoder.setup()
    records = tuple(Record(id, {"text": (Media(content=text),)}) for id, text in texts.items())
    found: dict[str, Array] = {}
    for batch in segment_records(Batch(records), {"text": whole}):
        encoded = encode_segments(normalize_segments(batch, {"text": whole}), {"text": encoder})
        if encoded.modality and encoded.items:
            vectors = linear_map.apply(np.stack([segment.data for segment in encoded.items]), encoder.space)
            found |= dict(zip((segment.id for segment in encoded.items), vectors, strict=True))
    return found


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most so many, evenly spread."""
    return [items[int(place)] for place in np.linspace(0, len(items) - 1, min(count, len(items)))]


def _read_lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except OSError as error:
        raise UsageError(f"can't read the captions {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"the captions {path} are no UTF-8 at byte {error.start}: save them as UTF-8") from error
    found = [line for line in lines if line]
    if not found:
        raise UsageError(f"the captions {path} hold no text: give one a line")
    return found


def format_audit(result: Mapping[str, Any]) -> str:
    """An audit for the screen: plain text, in columns."""
    inverted = [
        [
            row["modality"],
            str(row["records"]),
            f"{row['f1']:.3f} ({row['f1_low']:.3f}-{row['f1_high']:.3f})",
            f"{row['chance_f1']:.3f}",
            f"{row['identified']:.1%}",
            f"{row['chance_identified']:.1%}",
        ]
        for row in result["inversion"]
    ]
    probed = [
        [
            row["modality"],
            row["what"],
            str(row["classes"]),
            f"{row['accuracy']:.3f} ({row['accuracy_low']:.3f}-{row['accuracy_high']:.3f})"
            if "accuracy" in row
            else "-",
            f"{row['chance']:.3f}" if "chance" in row else "-",
            f"{row['auc']:.3f}" if "auc" in row else "-",
        ]
        for row in result["probes"]
    ]
    names = [name for name in result["trials"][0] if name not in ("noise", "dim")]
    trials = [
        [f"{row['noise']:g}", str(row["dim"]), *("-" if row[name] is None else f"{row[name]:.3f}" for name in names)]
        for row in result["trials"]
    ]
    parts = [
        f"{result['outside']:,} captions from outside ({result['captions']}); {result['copies']:.1%} of the texts that "
        f"are attacked are among them word for word. The embeddings have noise {result['noise']:g}.",
        "how much of a text the nearest caption tells (F1 of words), and how often the true text is the nearest of all",
        columns(["embedding of", "records", "F1 (95 %)", "by chance", "identified", "by chance"], inverted),
    ]
    if probed:
        parts += [
            "what linear probes tell: values of the metadata (balanced accuracy), words of the text (area under ROC)",
            columns(["embedding of", "what", "classes", "accuracy (95 %)", "by chance", "AUC"], probed),
        ]
    parts += [
        "with noise, or the first dimensions alone (the first row: as they are)",
        columns(["noise", "dim", *names], trials),
        "Measured against these attacks alone; no promise of privacy follows. `mmembed project OUT --noise S` and "
        "`mmembed fit OUT --dim K` make it so. Only the column `embedding`, and indexes made of it, have noise: "
        "features/ have none, and beside the vectors lie ids, texts and metadata. Share that column alone.",
    ]
    return "\n\n".join(parts)
