"""Kinds of FAISS indexes: what each takes in memory, how it is trained, filled and asked, and what a query costs.

FAISS gives the candidates; their scores are then computed anew from the rows themselves, which lie beside the index in
a file that is mapped into memory. So every score that anybody sees is exact, whatever the kind, and vectors that are
compressed to a thirtieth still find what whole ones do. "Points" are operating points: the parameters of a search.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Rows = NDArray[np.int64]

Point = Mapping[str, int]
"""nprobe: lists that are looked into; efSearch: nodes of the graph that are kept; refine: how many times k candidates
are compared with the rows themselves."""

RECALL_K = 10
"""The k of the recall that indexes are tuned for."""

REFINES = (1, 2, 4, 8, 16, 32, 64)
BLOCK_ROWS = 1 << 16
"""Rows that are encoded together: a unit of work of the index stage."""

_POINTS_A_LIST = 64  # rows that k-means sees for each list; more took longer and found no more
_ITERATIONS = 10
_MAX_LISTS = 1 << 16
_EXACT_ROWS = 20_000  # so few rows are compared one by one, whatever the index: some ms
_BLOCK_VALUES = 1 << 24  # 64 MB of float32 at a time
_WIDEST = 16  # how much further an index looks, at most, where a filter leaves few of its rows

# What a query costs on one core, in ns: measured by benchmarks/index.py on a server of 2025, for choosing alone.
_NS_A_BYTE = {"Flat": 0.1, "SQ": 0.25, "PQfs": 0.2, "PQ": 0.6}
_NS_A_CODE, _NS_A_ROW, _NS_A_NODE = 1.5, 3000.0, 150.0
_NS_A_QUERY = 60_000.0
LEAST_MS = _NS_A_QUERY / 1e6
"""What a query takes before any row is looked at."""


@dataclass(frozen=True)
class Kind:
    """A kind of index.

    Attributes:
        name: in FAISS's words: "Flat", "SQfp16", "SQ8", "HNSW32", "IVF1024,Flat", "IVF1024,SQ8",
            "OPQ64_128,IVF1024,PQ64x4fs" (128 directions in 64 pieces of 4 bits), "OPQ16_128,IVF1024,PQ16" (of 8 bits).
    """

    name: str

    @cached_property
    def lists(self) -> int:
        """Lists of an inverted file, 0 where there is none."""
        found = re.search(r"IVF(\d+)", self.name)
        return int(found[1]) if found else 0

    @property
    def code(self) -> str:
        """How a row is stored: "Flat", "SQfp16", "SQ8", "PQ64x4fs", "PQ32"; "HNSW32" is a graph over whole rows."""
        return self.name.rsplit(",", 1)[-1]

    @property
    def is_exact(self) -> bool:
        """Whether every row is compared as it is."""
        return self.name == "Flat"

    def gives_scores(self, radius: float) -> bool:
        """Whether its own scores are inner products of whole rows, so that there is nothing to refine."""
        return not radius and (self.code == "Flat" or self.is_graph)

    @property
    def is_graph(self) -> bool:
        """Whether it is a graph, which grows row by row."""
        return self.name.startswith("HNSW")

    @property
    def least_rows(self) -> int:
        """Rows that it can be trained on: FAISS wants 39 for each entry of a book of codes."""
        return 39 * self.book if self.code.startswith("PQ") else 1

    @property
    def book(self) -> int:
        """Entries of each book of codes."""
        return 16 if self.code.endswith("x4fs") else 256

    def code_bytes(self, dim: int) -> float:
        """Bytes of a row's code."""
        if found := re.match(r"PQ(\d+)(x4)?", self.code):
            return int(found[1]) / 2 if found[2] else int(found[1])
        if self.is_graph:
            return 4 * dim + 4 * 2 * int(self.code[4:]) + 24
        return {"Flat": 4, "SQfp16": 2, "SQ8": 1}[self.code] * dim

    @property
    def directions(self) -> int:
        """That rows are rotated into before they are cut into pieces; 0 where they aren't."""
        found = re.match(r"OPQ\d+_(\d+)", self.name)
        return int(found[1]) if found else 0

    def bytes(self, rows: int, dim: int) -> int:
        """Of the index in memory, and in its file."""
        inner = self.directions or dim
        numbers = 8 if self.lists else 0
        learned = 4 * inner * (self.lists + (self.book if self.directions else 0)) + 4 * dim * self.directions
        # fast scan stores the codes of 32 rows together: half of that is empty at the end of each list
        padding = 16 * self.lists * self.code_bytes(dim) if self.code.endswith("fs") else 0
        return int(rows * (self.code_bytes(dim) + numbers) + learned + padding) + 64 * self.lists + 4096

    def milliseconds(self, rows: int, dim: int, point: Point) -> float:
        """What a query is expected to take on one core; a model, the same on every machine."""
        refined = 0 if self.is_exact else point.get("refine", 1) * RECALL_K * (_NS_A_ROW + _NS_A_BYTE["Flat"] * 4 * dim)
        if self.is_graph:
            seen = 2.0 * max(point["efSearch"], RECALL_K) * (_NS_A_NODE + _NS_A_BYTE["Flat"] * 16 * dim)
            return (_NS_A_QUERY + seen + refined) / 1e6
        scanned = rows * min(1.0, point["nprobe"] / self.lists) if self.lists else float(rows)
        family = "PQfs" if self.code.endswith("fs") else re.sub(r"\d.*|fp16", "", self.code)
        a_code = self.code_bytes(dim) * _NS_A_BYTE[family] + (_NS_A_CODE if self.lists else 0)
        coarse = _NS_A_BYTE["Flat"] * 4 * ((self.directions or dim) * self.lists + dim * self.directions)
        return (_NS_A_QUERY + coarse + scanned * a_code + refined) / 1e6

    def points(self) -> list[dict[str, int]]:
        """Searches to be tried, the cheapest first, without `refine`."""
        if self.is_graph:
            return [{"efSearch": 1 << power} for power in range(4, 11)]
        if not self.lists:
            return [{}]
        steps = sorted({round(2 ** (step / 2)) for step in range(2 * int(np.log2(self.lists)) + 1)} | {self.lists})
        return [{"nprobe": step} for step in steps]


def lists_for(rows: int) -> int:
    """How many lists an inverted file has: about 2 sqrt(n), a power of 2, and no more than there are rows."""
    return 1 if rows < 4 else int(min(_MAX_LISTS, 2 ** round(np.log2(2 * np.sqrt(rows)))))


def tiers(rows: int, dim: int) -> list[list[Kind]]:
    """Kinds of index for so many rows, by what building them costs: a tier is tried where those before it are too large
    or too slow."""
    lists = f"IVF{lists_for(rows)}"
    halves, quarters, eighths, sixteenths = (max(1, dim // part) for part in (2, 4, 8, 16))
    names = [
        ["Flat"],
        [
            f"OPQ{halves}_{2 * halves},{lists},PQ{halves}x4fs" if dim > 1 else "SQ8",
            f"OPQ{quarters}_{2 * quarters},{lists},PQ{quarters}x4fs" if dim > 3 else "SQ8",
            f"{lists},SQ8",
            f"{lists},Flat",
            "SQ8",
            "SQfp16",
        ],
        [
            f"OPQ{eighths}_{dim // eighths * eighths},{lists},PQ{eighths}",
            f"OPQ{sixteenths}_{dim // sixteenths * sixteenths},{lists},PQ{sixteenths}",
        ],
        ["HNSW32"],
    ]
    return [[kind for kind in map(Kind, dict.fromkeys(tier)) if kind.least_rows <= rows] for tier in names]


def for_rows(kind: Kind, rows: int) -> Kind:
    """A kind with as many lists as that many rows need."""
    return Kind(re.sub(r"IVF\d+", f"IVF{lists_for(rows)}", kind.name))


def training_rows(kind: Kind, rows: int) -> int:
    """How many rows a kind is trained on."""
    return min(rows, max(_POINTS_A_LIST * kind.lists, 1 << 14))


def codable(rows: Array, radius: float) -> Array:
    """Rows (n, D) as an index takes them, float32 (n, D), or (n, D + 1) with a radius.

    Args:
        radius: M, the largest L2 norm of all rows, where they are no unit vectors; 0 where they are. Rows then get
            sqrt(M^2 - |g|^2) as one more coordinate, and the index goes by L2 distance: the nearest row is the one of
            the largest inner product (Bachrach et al., RecSys 2014, theorem 1). Queries get a 0 there, by `asking`.
    """
    if radius:
        squares = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
        last = np.sqrt(np.maximum(float(radius) ** 2 - squares, 0))[:, np.newaxis]
        rows = np.concatenate([rows, last], axis=1, dtype=np.float32)
    return np.ascontiguousarray(rows, np.float32)


def asking(queries: Array, radius: float) -> Array:
    """Queries (q, D) as an index takes them, float32 (q, D), or (q, D + 1) with a radius."""
    return np.ascontiguousarray(np.pad(queries, ((0, 0), (0, 1))) if radius else queries, np.float32)


State = Mapping[str, Array]
"""What a kind has learned from rows: centroids of lists, books of codes, scales, a rotation. Plain arrays, since a
FAISS file can't be read safely unless its checksum is known."""


def empty(kind: Kind, width: int, radius: float) -> Any:
    """An index of rows of so many values, neither trained nor filled. Of fast-scan kinds, codes are packed by
    `fill`."""
    faiss = _faiss()
    metric = faiss.METRIC_L2 if radius else faiss.METRIC_INNER_PRODUCT
    index = faiss.index_factory(width, kind.name.replace("x4fs", "x4"), metric)
    if kind.directions:
        _inner(index).do_polysemous_training = False  # of codes that are compared as bits, which takes most of the time
    return index


def train(kind: Kind, sample: Array, radius: float) -> Any:
    """An index that is ready to encode rows, and holds none; the same sample, the same index.

    Args:
        sample: rows (n, D), see `training_rows`.
        radius: as of `codable`.
    """

    rows = codable(sample, radius)
    index = empty(kind, rows.shape[1], radius)
    inner = _inner(index)
    if kind.directions:
        _rotate(index, _balanced(rows, kind.directions, inner.pq.M))
        inner.pq.cp.min_points_per_centroid = 1
        rows = index.chain.at(0).apply(rows)
    if kind.lists:
        inner.cp.niter, inner.cp.min_points_per_centroid = _ITERATIONS, 1  # small sets are none the worse for it
    if not inner.is_trained:
        inner.train(rows)
    index.is_trained = True
    return index


def _balanced(rows: Array, directions: int, pieces: int) -> Array:
    """Orthonormal directions, float32 (directions, D), cut into pieces of which each has as much of the variance: the
    parametric solution of optimized product quantization (Ge, He, Ke, Sun, CVPR 2013, section 3.2), with eigenvalues
    dealt out to the pieces to and fro. A mean is not taken off: it would change inner products."""
    centered = rows - rows.mean(axis=0)
    _, vectors = np.linalg.eigh(centered.T.astype(np.float64) @ centered)
    chosen = vectors.T[::-1][:directions]
    signs = np.sign(chosen[np.arange(directions), np.abs(chosen).argmax(axis=1)])  # which LAPACK leaves open
    dealt = np.arange(directions).reshape(-1, pieces)
    dealt[1::2] = dealt[1::2, ::-1]
    return np.ascontiguousarray((chosen * signs[:, np.newaxis])[dealt.T.ravel()], np.float32)


def _rotate(index: Any, directions: Array) -> None:
    faiss = _faiss()
    rotation = faiss.downcast_VectorTransform(index.chain.at(0))
    faiss.copy_array_to_vector(directions.ravel(), rotation.A)
    rotation.is_trained = True


def state_of(index: Any) -> dict[str, Array]:
    """What a trained index has learned."""
    faiss = _faiss()

    found, inner = {}, _inner(index)
    if inner is not index:
        rotation = faiss.downcast_VectorTransform(index.chain.at(0))
        found["rotation"] = faiss.vector_to_array(rotation.A).reshape(rotation.d_out, rotation.d_in)
    if isinstance(inner, faiss.IndexIVF):
        found["lists"] = inner.quantizer.reconstruct_n(0, inner.nlist)
    if hasattr(inner, "pq"):
        found["books"] = faiss.vector_to_array(inner.pq.centroids)
    if hasattr(inner, "sq"):
        found["scales"] = faiss.vector_to_array(inner.sq.trained)
    return {name: np.ascontiguousarray(array, np.float32) for name, array in found.items()}


def restored(kind: Kind, state: State, width: int, radius: float) -> Any:
    """A trained index from what it had learned."""
    faiss = _faiss()

    index = empty(kind, width, radius)
    inner = _inner(index)
    if "rotation" in state:
        _rotate(index, state["rotation"])
    if "lists" in state:
        inner.quantizer.add(state["lists"])
    if "books" in state:
        faiss.copy_array_to_vector(state["books"], inner.pq.centroids)
    if "scales" in state:
        faiss.copy_array_to_vector(state["scales"], inner.sq.trained)
    inner.is_trained = index.is_trained = True
    return index


def _faiss() -> Any:
    """FAISS without its type stubs, which lack the keyword arguments that its Python layer adds."""
    import faiss

    return faiss


def _inner(index: Any) -> Any:
    """What holds the codes, behind a rotation."""
    faiss = _faiss()
    return faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index


def encode(index: Any, kind: Kind, rows: Array, radius: float) -> NDArray[np.uint8]:
    """Codes of rows (n, D), uint8 (n, bytes), as `fill` takes them."""
    coded, inner = codable(rows, radius), _inner(index)
    if inner is not index:
        coded = index.chain.at(0).apply(coded)
    codes: NDArray[np.uint8] = inner.sa_encode(coded)
    return codes


def fill(index: Any, kind: Kind, codes: Iterable[NDArray[np.uint8]]) -> Any:
    """A trained index with rows in it, from their codes in their order."""
    inner, count = _inner(index), 0
    for block in codes:
        numbers = np.arange(count, count + len(block)) if kind.lists else None
        inner.add_sa_codes(block, numbers)
        count += len(block)
    index.ntotal = count
    return _packed(index) if kind.code.endswith("fs") else index


def _packed(index: Any) -> Any:
    """A rotated index of 4-bit codes, as one for fast scan."""
    faiss = _faiss()
    inner = _inner(index)
    packed = faiss.IndexIVFPQFastScan(inner)
    inner.own_fields, packed.own_fields = False, True  # of the centroids, which both point to
    inner.this.own(True)  # so that it goes with this name
    index.index = packed
    packed.this.disown()  # the rotated index owns it now
    return index


def grow(index: Any, kind: Kind, blocks: Iterable[Array], radius: float) -> Any:
    """An index with rows in it that grows row by row: with one thread, so that the same rows give the same graph."""
    faiss = _faiss()
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        for rows in blocks:
            index.add(codable(rows, radius))
    finally:
        faiss.omp_set_num_threads(threads)
    return index


def build(kind: Kind, rows: Array, radius: float, seed: int = 0) -> Any:
    """An index over rows (n, D) that are in memory, or mapped into it."""
    index = train(kind, rows[sample_of(len(rows), training_rows(kind, len(rows)), seed)], radius)
    blocks = (rows[start : start + BLOCK_ROWS] for start in range(0, len(rows), BLOCK_ROWS))
    if kind.is_graph:
        return grow(index, kind, blocks, radius)
    return fill(index, kind, (encode(index, kind, block, radius) for block in blocks))


def sample_of(rows: int, count: int, seed: int = 0) -> Rows:
    """Numbers of rows that are drawn without replacement, ascending."""
    return np.sort(np.random.default_rng(seed).choice(rows, min(count, rows), replace=False))


def candidates(
    index: Any, kind: Kind, queries: Array, count: int, point: Point, radius: float, selector: Any = None
) -> tuple[Array, Rows]:
    """What an index takes for the best rows: its own scores, float32 (q, count), and numbers of rows, int64 (q, count);
    -1 where it found fewer."""
    parameters = parameters_of(index, kind, count, point, selector)
    found: tuple[Array, Rows] = index.search(asking(queries, radius), count, params=parameters)
    return found


def parameters_of(index: Any, kind: Kind, count: int, point: Point, selector: Any = None) -> Any:
    """A point as FAISS takes it, for a search of so many rows."""
    faiss = _faiss()
    if kind.is_graph:
        return faiss.SearchParametersHNSW(efSearch=max(point["efSearch"], count), sel=selector)
    if not kind.lists:
        return faiss.SearchParameters(sel=selector)
    parameters = faiss.SearchParametersIVF(nprobe=min(point["nprobe"], kind.lists), sel=selector)
    is_rotated = isinstance(index, faiss.IndexPreTransform)
    return faiss.SearchParametersPreTransform(index_params=parameters) if is_rotated else parameters


def scores_of(queries: Array, vectors: Array, rows: Rows) -> Array:
    """Inner products of queries (q, D) with some rows (q, c) of vectors each, float32 (q, c); -inf for the row -1."""
    faiss = _faiss()
    assert queries.shape[1] == vectors.shape[1]  # it reads memory by this width, and checks nothing
    # FAISS reads the rows where they lie: numpy would copy them first, which takes as long again.
    given = [np.ascontiguousarray(array, np.float32) for array in (queries, vectors)]
    numbers, scores = np.ascontiguousarray(rows, np.int64), np.empty(rows.shape, np.float32)
    pointers = [faiss.swig_ptr(array) for array in (scores, *given, numbers)]
    faiss.fvec_inner_products_by_idx(*pointers, queries.shape[1], *rows.shape)
    return scores


def best_of(scores: Array, rows: Rows, k: int) -> tuple[Array, Rows]:
    """The k best of candidates (q, c), best first, ties by row: scores and rows (q, min(k, c))."""
    each = np.arange(len(scores))[:, np.newaxis]
    if scores.shape[1] > 4 * k:  # only the best can be among them, and what ties with the last of these
        least = np.partition(scores, scores.shape[1] - k, axis=1)[:, -k]
        widest = max(k, int((scores >= least[:, np.newaxis]).sum(axis=1).max()))
        places = np.argpartition(-scores, widest - 1, axis=1)[:, :widest]
        scores, rows = scores[each, places], rows[each, places]
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    return scores[each, order], rows[each, order]


def nearest_of(queries: Array, vectors: Array, k: int, among: Rows | None = None) -> tuple[Array, Rows]:
    """The k best rows by comparing all of them, or some: scores float32 (q, k) and row numbers (q, k), -1 and -inf
    where there are fewer. Ties are broken by row. Blocks of rows are read at a time.

    Args:
        among: numbers of rows, ascending.
    """
    count = len(vectors) if among is None else len(among)
    best = np.full((len(queries), 0), -np.inf, np.float32), np.full((len(queries), 0), -1, np.int64)
    size = max(1, _BLOCK_VALUES // max(len(queries), queries.shape[1]))
    for start in range(0, count, size):
        numbers = np.arange(start, min(start + size, count)) if among is None else among[start : start + size]
        block = vectors[start : start + size] if among is None else vectors[numbers]
        scores = queries @ np.asarray(block, np.float32).T
        here = best_of(scores, np.broadcast_to(numbers, scores.shape), k)
        best = best_of(np.concatenate([best[0], here[0]], axis=1), np.concatenate([best[1], here[1]], axis=1), k)
    short = k - best[0].shape[1]
    return (
        np.pad(best[0], ((0, 0), (0, short)), constant_values=-np.inf),
        np.pad(best[1], ((0, 0), (0, short)), constant_values=-1),
    )


def wider(point: Point, kind: Kind, k: int, share: float) -> Point:
    """A point for k other than RECALL_K, or where a filter keeps a share of the rows: what is looked for then lies as
    deep as that of a larger k."""
    depth = min(_WIDEST, max(1.0, k / RECALL_K) / max(share, 1e-9))
    if depth == 1:
        return point
    changed = {name: round(value * math.sqrt(depth)) for name, value in point.items() if name != "refine"}
    return {**point, **changed}


def search(
    index: Any,
    kind: Kind,
    vectors: Array,
    queries: Array,
    k: int,
    point: Point,
    radius: float = 0.0,
    kept: NDArray[np.bool_] | None = None,
) -> tuple[Array, Rows]:
    """The k best rows for each query (q, D), best first: exact scores float32 (q, k), row numbers int64 (q, k); -inf
    and -1 where there are fewer. Of a kind that is exact, and where a filter leaves few rows, they are those of a
    comparison with all rows, ties by row.

    Args:
        vectors: all rows (n, D).
        kept: rows that may be found, bool (n,).
    """
    count = len(vectors) if kept is None else int(np.count_nonzero(kept))
    if kind.is_exact:
        return _flat(index, queries, k, count, _selector(kept))
    if kept is not None and (count <= _EXACT_ROWS or count * _WIDEST < len(vectors)):
        return nearest_of(queries, vectors, k, np.flatnonzero(kept))
    point = wider(point, kind, k, count / max(len(vectors), 1))
    depth = min(k * point.get("refine", 1), len(vectors))
    scores, found = candidates(index, kind, queries, max(depth, k), point, radius, _selector(kept))
    if not kind.gives_scores(radius):
        scores = scores_of(queries, vectors, found)
    scores[found < 0] = -np.inf
    scores, found = best_of(scores, found, k)
    # Where it looked in vain: in lists of which a filter keeps too little.
    short = np.flatnonzero(found[:, min(k, count) - 1] < 0) if count else ()
    if len(short):
        among = None if kept is None else np.flatnonzero(kept)
        scores[short], found[short] = nearest_of(queries[short], vectors, k, among)
    return scores, found


def _flat(index: Any, queries: Array, k: int, count: int, selector: Any) -> tuple[Array, Rows]:
    """FAISS keeps any of the rows that tie for the last place: ask for more until each tie is seen whole."""
    faiss = _faiss()

    asked = max(1, k)
    while True:
        asked = min(2 * asked, max(count, k))
        found = index.search(np.ascontiguousarray(queries), asked, params=faiss.SearchParameters(sel=selector))
        scores, rows = np.where(found[1] < 0, -np.inf, found[0]).astype(np.float32), found[1]
        if asked >= count or (scores[:, -1] < scores[:, k - 1]).all():
            return best_of(scores, rows, k)


def _selector(kept: NDArray[np.bool_] | None) -> Any:
    """Rows that may be found, as FAISS takes them; the selector keeps its bits alive."""
    faiss = _faiss()

    if kept is None:
        return None
    bits = np.packbits(kept, bitorder="little")
    selector = faiss.IDSelectorBitmap(bits)
    selector.bits = bits
    return selector
