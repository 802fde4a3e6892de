"""Figures of retrieval, classification and the shape of a space, how sure they are, and whether two of them differ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CUTOFFS = (1, 5, 10)
"""The k of recall@k."""

Values = NDArray[np.float64]

_TIE = 1e-6  # scores of unit vectors that differ by less differ by the rounding of a float32 product, if at all
_BLOCK_SCORES = 1 << 22  # 16 MB of float32 scores at a time
_BLOCK_DRAWS = 1 << 22  # 32 MB of float64 counts at a time; another number draws other random signs
_APART = 4.0  # more than two scores of unit vectors, and two ties, can lie apart
_DISCOUNTS = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, 12)))])  # of the first 0 to 10 ranks together


@dataclass(frozen=True, eq=False)
class Outcome:
    """One direction of retrieval, query by query.

    Attributes:
        rank: of the best right answer, 1 for first, float64 (q,).
        right: number of right candidates, at least 1, int64 (q,).
        average_precision: mean over the right answers of the share of right ones down to their rank, float64 (q,).
        ndcg: nDCG@10, float64 (q,): the sum of 1 / log2(1 + rank) over the right answers among the first 10, divided
            by the most it can be (Järvelin and Kekäläinen, ACM TOIS 2002, with binary gains).
        candidates: n.
    """

    rank: Values
    right: NDArray[np.int64]
    average_precision: Values
    ndcg: Values
    candidates: int

    def __post_init__(self) -> None:
        shapes = {array.shape for array in (self.rank, self.right, self.average_precision, self.ndcg)}
        if len(shapes) > 1 or len(self.rank.shape) != 1 or not len(self.rank):
            raise ValueError(f"an outcome is of one value for each query, and of one query at least, not of {shapes}")


def outcome(
    queries: NDArray[np.float32],
    candidates: NDArray[np.float32],
    starts: NDArray[np.int64],
    query_labels: NDArray[np.int64],
    candidate_labels: NDArray[np.int64],
) -> Outcome:
    """How well each query finds its right answers by inner products.

    Among scores that tie, the rank is the mean over all their orders: with t wrong and r right ones at the best right
    score, below a better ones, it is 1 + a + t / (r + 1); the mid-rank where r = 1. So a model that gives all the
    same score ranks like a random order, (n + 1) / (r + 1), and not like a perfect one. Scores tie where they differ
    by at most 1e-6 max(1, |q| max |g|), g any candidate's row.

    Average precision and nDCG are means over all orders of what ties. A right answer with t scores in its tie (its own
    too), g of them right, below a better ones, R of them right, comes at each of the ranks a + 1 to a + t equally
    often, and at rank a + j it has a precision of (R + 1 + (j - 1) (g - 1) / (t - 1)) / (a + j) on average (McSherry
    and Najork, ECIR 2008).

    Scores are held for a block of queries at a time, and sorted: O(n log n) a query.

    Args:
        queries: vectors of any length (q, k), at least one.
        candidates: vectors (rows, k), segments of n candidates; a candidate scores as its best segment.
        starts: the first row of each candidate, ascending from 0, (n,).
        query_labels: (q, m).
        candidate_labels: (n, m). A candidate is right if it has the query's label in any column.

    Raises:
        ValueError: a query has no right candidate, there is no query, or a vector has a value that is not finite.
    """
    parts = []
    for block, scores in _scores(queries, candidates, starts):
        is_right = (query_labels[block, np.newaxis] == candidate_labels).any(axis=2)
        parts.append((*_block_ranks(scores, is_right), *_block_gains(scores, is_right)))
    rank, right, precision, ndcg = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return Outcome(rank, right, precision, ndcg, len(starts))


def nearest(
    queries: NDArray[np.float32], candidates: NDArray[np.float32], starts: NDArray[np.int64], k: int
) -> NDArray[np.int64]:
    """Numbers of the k best candidates for each query (fewer where there are fewer), in no order, int64 (q, k).

    Args: as of `outcome`.
    """
    k = min(k, len(starts))
    blocks = _scores(queries, candidates, starts)
    return np.concatenate([np.argpartition(-scores, k - 1, axis=1)[:, :k] for _, scores in blocks])


def _scores(
    queries: NDArray[np.float32], candidates: NDArray[np.float32], starts: NDArray[np.int64]
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Blocks of queries and their scores (b, n), each query's divided so that the tolerance of a tie is `_TIE`."""
    if not len(queries) or not len(candidates):
        raise ValueError(f"{len(queries)} queries and {len(candidates)} candidates: nothing can be measured")
    scale = np.maximum(_lengths(queries) * _lengths(candidates).max(), 1)
    if not np.isfinite(scale).all():
        raise ValueError("a vector has a value that is not finite: it has no score")
    size = max(1, _BLOCK_SCORES // max(candidates.shape))  # a block of queries is no larger than its scores
    for block in (slice(start, start + size) for start in range(0, len(queries), size)):
        asked = (queries[block] / scale[block, np.newaxis]).astype(np.float32)
        yield block, np.maximum.reduceat(asked @ candidates.T, starts, axis=1)


def _lengths(vectors: NDArray[np.float32]) -> Values:
    """L2 norms of rows, float64 (n,): a square may be more than a float32 holds."""
    return np.asarray(np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)))


def _block_ranks(scores: NDArray[np.float32], right: NDArray[np.bool_]) -> tuple[Values, NDArray[np.int64]]:
    counts = right.sum(axis=1)
    if not counts.all():
        raise ValueError("a query has no right candidate: its rank is not defined")
    lead = scores - np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
    tied = np.abs(lead) <= _TIE
    above, wrong, good = (mask.sum(axis=1) for mask in (lead > _TIE, tied & ~right, tied & right))
    return 1 + above + wrong / (good + 1), counts


def _block_gains(scores: NDArray[np.float32], right: NDArray[np.bool_]) -> tuple[Values, Values]:
    """Average precision and nDCG@10, (b,) each."""
    counts = right.sum(axis=1)
    row = np.repeat(np.arange(len(scores)), counts)  # of each right answer
    first = np.cumsum(counts) - counts  # the first right answer of each row
    # All scores on one line, best first, the rows apart: so one search serves all rows. In float64 a number as large
    # as a block has rows still has digits enough for a tie.
    everyone = (np.sort(-scores, axis=1) + _APART * np.arange(len(scores))[:, np.newaxis]).ravel()
    good = np.sort(-scores[right] + _APART * row)
    above, upto = (places - row * scores.shape[1] for places in _ties(everyone, good))
    good_above, good_upto = (places - first[row] for places in _ties(good, good))
    precision = _tied_precision(above, upto - above, good_above, good_upto - good_above)
    found, ideal = _DISCOUNTS[np.minimum([above, upto], 10)], _DISCOUNTS[np.minimum(counts, 10)]
    gain = np.add.reduceat((found[1] - found[0]) / (upto - above), first) / ideal
    # both are at most 1, but for the last bits of differences
    return np.minimum(np.add.reduceat(precision, first) / counts, 1), np.minimum(gain, 1)


def _ties(keys: Values, of: Values) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many of the ascending keys lie before the tie of each value, and how many before its end."""
    return np.searchsorted(keys, of - _TIE, "left"), np.searchsorted(keys, of + _TIE, "right")


def _tied_precision(
    above: NDArray[np.int64], size: NDArray[np.int64], good_above: NDArray[np.int64], good: NDArray[np.int64]
) -> Values:
    """The mean over j = 1 to t of (R + 1 + (j - 1) s) / (a + j), where s = (g - 1) / (t - 1); (p,).

    With D, the sum of 1 / (a + j), it is ((R + 1) D + s (t - (a + 1) D)) / t.

    Args:
        above: a, (p,).
        size: t, at least 1, (p,).
        good_above: R, (p,).
        good: g, at least 1, (p,).
    """
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, (above + size).max() + 1))])
    total = harmonic[above + size] - harmonic[above]
    share = (good - 1) / np.maximum(size - 1, 1)  # 0 for a tie of one
    return np.asarray(((good_above + 1) * total + share * (size - (above + 1) * total)) / size)


def per_query(outcome: Outcome) -> dict[str, Values]:
    """The values whose means are the figures, float64 (q,) each: recall@k (0 or 1), mrr, map, ndcg@10."""
    return {
        **{f"recall@{k}": (outcome.rank <= k).astype(np.float64) for k in CUTOFFS},
        "mrr": 1 / outcome.rank,
        "map": outcome.average_precision,
        "ndcg@10": outcome.ndcg,
    }


def summary(
    outcome: Outcome, clusters: NDArray[np.int64] | None = None, samples: int = 1000, seed: int = 0
) -> dict[str, float]:
    """Recall@k (the share of queries whose best right answer is among the first k), mean reciprocal rank, mean average
    precision, mean nDCG@10, each with the bounds of its 95 % interval (`recall@1_low`, `recall@1_high`, ...); median
    rank; and what a random order would give on average, by the exact formula.

    The bounds are percentiles of the bootstrap (Efron and Tibshirani 1993, section 13.3) over clusters of queries.

    Args:
        clusters: which queries are drawn together, int64 (q,): those that are not independent of each other, such as
            captions of one picture. None: each query alone. One cluster alone has equal bounds, which say nothing.
        samples: of the bootstrap.
        seed: of its draws.
    """
    values = per_query(outcome)
    table = np.stack(list(values.values()), axis=1)
    low, high = _bounds(_resampled(table, clusters, samples, seed))
    return {
        "queries": len(outcome.rank),
        "candidates": outcome.candidates,
        **{name: float(column.mean()) for name, column in values.items()},
        "median_rank": float(np.median(outcome.rank)),
        **{f"{name}_low": float(bound) for name, bound in zip(values, low, strict=True)},
        **{f"{name}_high": float(bound) for name, bound in zip(values, high, strict=True)},
        **chance(outcome.candidates, outcome.right),
    }


def mean_bounds(values: Values, weights: Values | None = None) -> tuple[float, float]:
    """95 % bounds of the weighted mean of values (q,), by a percentile bootstrap, as in `summary`."""
    weights = np.ones(len(values)) if weights is None else weights
    sums = _resampled(np.column_stack([values * weights, weights]), None, 1000, 0)
    low, high = _bounds((sums[:, 0] / sums[:, 1])[:, np.newaxis])[:, 0]
    return float(low), float(high)


def _resampled(values: Values, clusters: NDArray[np.int64] | None, samples: int, seed: int) -> Values:
    """Means of values (q, m) over as many clusters as there are, drawn with replacement; float64 (samples, m)."""
    sums = _cluster_sums(np.column_stack([values, np.ones(len(values))]), clusters)
    count, random = len(sums), np.random.default_rng(seed)
    totals = np.concatenate([_drawn(random, size, count) @ sums for size in _sizes(samples, count)])
    return np.asarray(totals[:, :-1] / totals[:, -1:])


def _drawn(random: np.random.Generator, samples: int, count: int) -> Values:
    """How often each of a number of clusters is drawn in each sample, float64 (samples, count)."""
    places = random.integers(0, count, (samples, count)) + count * np.arange(samples)[:, np.newaxis]
    return np.bincount(places.ravel(), minlength=samples * count).reshape(samples, count).astype(np.float64)


def _cluster_sums(values: Values, clusters: NDArray[np.int64] | None) -> Values:
    """Sums of values (q, m) over the queries of each cluster, float64 (clusters, m)."""
    if clusters is None:
        return values
    if clusters.shape != (len(values),):
        raise ValueError(f"{len(values)} queries have clusters of shape {clusters.shape}: give one for each query")
    codes = np.unique(clusters, return_inverse=True)[1]
    return np.stack([np.bincount(codes, column) for column in values.T], axis=1)


def _sizes(samples: int, count: int) -> list[int]:
    """How many samples of a number of clusters to hold at a time."""
    size = max(1, _BLOCK_DRAWS // count)
    return [min(size, samples - start) for start in range(0, samples, size)]


def _bounds(means: Values) -> Values:
    """Of the middle 95 % of each column: (samples, m) -> (2, m)."""
    return np.percentile(means, [2.5, 97.5], axis=0)


def paired_test(
    a: Values, b: Values, clusters: NDArray[np.int64] | None = None, samples: int = 10000, seed: int = 0
) -> dict[str, float]:
    """Whether two ways to answer the same queries differ: by b - a, on average over the queries.

    p is that of the two-sided randomization test (Smucker, Allan, Carterette, CIKM 2007), which takes the sign of each
    cluster's difference as random: (1 + how many of the samples differ as much or more) / (samples + 1), so that it is
    never 0 (Phipson and Smyth 2010).

    Args:
        a: a value for each query, (q,); as `per_query` gives them.
        b: of the same queries, (q,).
        clusters, samples, seed: as of `summary`; bounds and p use as many samples each.

    Returns:
        "difference" with its bounds "difference_low" and "difference_high", of the 95 % interval of the bootstrap; "p".
    """
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"values of shapes {a.shape} and {b.shape} are no pairs: give both for each query")
    gains = np.subtract(b, a, dtype=np.float64)[:, np.newaxis]
    (low,), (high,) = _bounds(_resampled(gains, clusters, samples, seed))
    return {
        "difference": float(gains.mean()),
        "difference_low": float(low),
        "difference_high": float(high),
        "p": _flip_test(_cluster_sums(gains, clusters)[:, 0], samples, seed),
    }


def _flip_test(sums: Values, samples: int, seed: int) -> float:
    """The p of the sum of values (c,) where each has either sign as likely."""
    random = np.random.default_rng([seed, 1])  # not the stream of the bootstrap
    flipped = np.concatenate([_flipped(random, sums, size) for size in _sizes(samples, len(sums))])
    rounding = 1e-12 * np.abs(sums).sum()  # equal sums in another order differ by the last bits
    extreme = np.abs(flipped) >= abs(sums.sum()) - rounding
    return float((1 + np.count_nonzero(extreme)) / (samples + 1))


def _flipped(random: np.random.Generator, sums: Values, samples: int) -> Values:
    """Sums of values (c,) with random signs, (samples,)."""
    packed = random.integers(0, 256, (samples, -(-len(sums) // 8)), np.uint8)  # a bit a sign
    return np.asarray(2 * (np.unpackbits(packed, axis=1, count=len(sums)) @ sums) - sums.sum())


def chance(candidates: int, right: NDArray[np.int64]) -> dict[str, float]:
    """Expected recall@k and mean reciprocal rank of a random order.

    P(none of r right ones among the first k of n) = C(n - r, k) / C(n, k) = the product of (n - r - i) / (n - i) over
    i < k.

    Args:
        candidates: n.
        right: r of each query, at least 1, (q,).
    """
    values, counts = np.unique(right, return_counts=True)
    place = np.arange(candidates)
    recalls, reciprocals = np.zeros(len(CUTOFFS)), 0.0
    for r, weight in zip(values, counts / len(right), strict=True):
        # missed[i] = P(none among the first i + 1)
        missed = np.cumprod(np.maximum(candidates - r - place, 0) / (candidates - place))
        recalls += weight * (1 - missed[np.minimum(CUTOFFS, candidates) - 1])
        reciprocals += weight * float(-np.diff(missed, prepend=1.0) @ (1 / (place + 1)))
    named = {f"chance_recall@{k}": float(value) for k, value in zip(CUTOFFS, recalls, strict=True)}
    return {**named, "chance_mrr": float(reciprocals)}


def skewness_of_hits(hits: NDArray[np.int64], n: int) -> float:
    """How much a few candidates crowd the top of many lists (hubness): the skewness of the k-occurrences.

    S = E(N - mu)^3 / sigma^3, N how often a candidate is among the first k, mu and sigma its mean and standard
    deviation over the candidates (Radovanović, Nanopoulos, Ivanović, JMLR 11, 2010). 0 for equal counts and for
    symmetric ones.

    Args:
        hits: numbers of candidates, 0 to n - 1, the first k for each query, int64 (q, k).
        n: number of candidates, those in no list too.
    """
    counts = np.bincount(hits.ravel(), minlength=n)
    if len(counts) > n:
        raise ValueError(f"candidate {len(counts) - 1} was hit, and there are {n}: give n as the number of candidates")
    apart = counts - counts.mean()
    return float((apart**3).mean() / (apart**2).mean() ** 1.5) if np.ptp(counts) else 0.0


def classification(predicted: NDArray[np.int64], true: NDArray[np.int64]) -> dict[str, float]:
    """Accuracy, macro F1 and the number of classes.

    F1 of a class is 2 hits / (predictions of it + occurrences of it). Macro F1 is its mean over the classes that occur
    in `true`: a prediction of another class is a miss of the true one alone.

    Args:
        predicted: class of each item, (n,).
        true: (n,).
    """
    if predicted.shape != true.shape or true.ndim != 1 or not len(true):
        raise ValueError(f"predictions {predicted.shape} of classes {true.shape}: give both for each item")
    names, codes = np.unique(np.concatenate([true, predicted]), return_inverse=True)
    correct = predicted == true
    parts = (codes[: len(true)], codes[len(true) :], codes[: len(true)][correct])
    occurring, guessed, hit = (np.bincount(part, minlength=len(names)) for part in parts)
    known = occurring > 0
    scores = 2 * hit[known] / (guessed + occurring)[known]
    return {"accuracy": float(correct.mean()), "macro_f1": float(scores.mean()), "classes": int(known.sum())}


def modality_gap(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """The Euclidean distance between the means of two modalities' vectors: the length of Delta_gap of Liang et al.,
    "Mind the Gap", NeurIPS 2022. Of unit vectors it is 0 to 2.

    Args:
        a: (n, k).
        b: (m, k).
    """
    return float(np.linalg.norm(a.mean(axis=0, dtype=np.float64) - b.mean(axis=0, dtype=np.float64)))
