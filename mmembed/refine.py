"""Refinement of maps by minibatch gradient descent: a contrastive loss on pairs of records, from the closed form on.

Embeddings are z = u M, with u the canonical variates of the closed form (n, q) and M (q, k) one matrix a modality,
which starts at the closed form's own (a diagonal) and is pulled back to it. Similarities of the embeddings of two
modalities are those that queries are answered with: cosines, or the Gaussian PMI score with its spectrum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
"""float32."""
Parameters = dict[str, Array]
Loss = Callable[[Array, NDArray[np.bool_], Array], tuple[float, Array, Array]]

STEPS = 120
EVERY = 20
"""Steps from one look at the validation slice to the next."""

PATIENCE = 60

BATCH = 512
_RATE = 2e-3  # of Adam (Kingma and Ba 2015), falling to 0 by a cosine
_MOMENTUM, _DECAY, _TINY = 0.9, 0.999, 1e-8
_PULL = 0.1  # towards the closed form: 0.01 and 0 lost on small sets (docs/maps.md)
_NOISE = 0.3  # added to each variate, in parts of its deviation
_SMOOTH = 0.95  # of the running average of the weights, which is what is tried and kept
_MARGIN = 0.2


def softmax_loss(scores: Array, others: NDArray[np.bool_], scale: Array) -> tuple[float, Array, Array]:
    """Softmax cross-entropy in both directions (InfoNCE, Oord et al. 2018; CLIP, Radford et al. 2021).

    Args:
        scores: similarities of n records in one modality and in another, float32 (n, n); pairs on the diagonal.
        others: which of them count as wrong answers, bool (n, n); neither the diagonal nor equal media.
        scale: (2,), the logarithm of the inverse temperature, and a bias that is not used.

    Returns:
        The loss, its gradient by the scores, and by the scale.
    """
    factor = np.exp(scale[0])
    logits = factor * np.where(others | np.eye(len(scores), dtype=bool), scores, -np.inf)
    rows, row_losses = _softmax(logits)
    columns, column_losses = _softmax(logits.T)
    gradient = (rows + columns.T) / (2 * len(scores))
    gradient[np.diag_indices_from(gradient)] -= 1 / len(scores)
    loss = float((row_losses.sum() + column_losses.sum()) / (2 * len(scores)))
    by_scale = np.array([factor * np.sum(gradient * scores), 0], scores.dtype)
    return loss, gradient * factor, by_scale


def sigmoid_loss(scores: Array, others: NDArray[np.bool_], scale: Array) -> tuple[float, Array, Array]:
    """Sigmoid cross-entropy of each pair by itself (SigLIP, Zhai et al. 2023, equation 1); arguments as `softmax_loss`,
    with the bias of the logits in scale[1]."""
    factor = np.exp(scale[0])
    sign = np.where(np.eye(len(scores), dtype=bool), 1, -others.astype(scores.dtype))
    margin = sign * (factor * scores + scale[1])
    used = sign != 0
    loss = float(np.logaddexp(0, -margin, where=used, out=np.zeros_like(margin)).sum() / len(scores))
    by_logit = -sign / (1 + np.exp(np.clip(margin, -80, 80))) / len(scores)
    by_scale = np.array([factor * np.sum(by_logit * scores), by_logit.sum()], scores.dtype)
    return loss, by_logit * factor, by_scale


def triplet_loss(scores: Array, others: NDArray[np.bool_], scale: Array) -> tuple[float, Array, Array]:
    """Hinge on the hardest wrong answer in the batch, both directions (VSE++, Faghri et al. 2018, equation 6), with a
    margin of 0.2; arguments as `softmax_loss`, without a scale."""
    right = np.diag(scores)
    wrong = np.where(others, scores, -np.inf)
    gradient, loss, number = np.zeros_like(scores), 0.0, np.arange(len(scores))
    for axis in (1, 0):
        hardest = wrong.argmax(axis=axis)
        excess = _MARGIN - right + wrong.max(axis=axis)
        active = excess > 0
        loss += float(excess[active].sum()) / (2 * len(scores))
        places = (number, hardest) if axis else (hardest, number)
        np.add.at(gradient, (places[0][active], places[1][active]), 1 / (2 * len(scores)))
        gradient[number[active], number[active]] -= 1 / (2 * len(scores))
    return loss, gradient, np.zeros_like(scale)


LOSSES: Mapping[str, tuple[Loss, Sequence[float]]] = {
    "softmax": (softmax_loss, (3.0, 0.0)),  # a temperature of 0.05
    "sigmoid": (sigmoid_loss, (2.3, -10.0)),  # the start of SigLIP
    "triplet": (triplet_loss, (0.0, 0.0)),
}
"""By name, the loss and where its scale starts, for cosines."""


def embed(variates: Array, matrix: Array, spectrum: Array | None) -> Array:
    """Embeddings (n, k): of length 1 where there is no spectrum."""
    z = variates @ matrix
    return z if spectrum is not None else z / _lengths(z)


def similarities(x: Array, y: Array, spectrum: Array | None) -> Array:
    """Scores (n, m) of embeddings: cosines, or log-ratios of jointly Gaussian variates up to a constant."""
    products = x @ y.T
    if spectrum is None:
        return products
    return np.asarray(products - x**2 @ spectrum[:, np.newaxis] / 2 - (y**2 @ spectrum / 2)[np.newaxis])


def gradients(
    variates: Mapping[str, Array],
    present: Mapping[str, NDArray[np.bool_]],
    alike: Mapping[str, NDArray[np.bool_]],
    parameters: Parameters,
    loss: Loss,
    spectrum: Array | None,
) -> tuple[float, Parameters]:
    """The loss of a batch, summed over the pairs of modalities, and its gradient by each parameter.

    Args:
        variates: by modality (n, q).
        present: by modality, which records have it, bool (n,).
        alike: by modality, which records have the same medium, bool (n, n).
        parameters: a matrix M (q, k) for each modality, and "scale/a/b" (2,) for each pair.
    """
    total = 0.0
    found = {name: np.zeros_like(value) for name, value in parameters.items()}
    for a, b in combinations(sorted(variates), 2):
        both = np.flatnonzero(present[a] & present[b])
        if len(both) < 2:
            continue
        u, v = variates[a][both], variates[b][both]
        x, y = embed(u, parameters[a], spectrum), embed(v, parameters[b], spectrum)
        others = ~(alike[a] | alike[b])[np.ix_(both, both)]
        value, by_score, by_scale = loss(similarities(x, y, spectrum), others, parameters[f"scale/{a}/{b}"])
        share = len(both) / len(present[a])
        total += share * value
        for name, rows, mine, its, by in ((a, u, x, y, by_score), (b, v, y, x, by_score.T)):
            found[name] += share * rows.T @ _through(by @ its, by.sum(axis=1), mine, rows @ parameters[name], spectrum)
        found[f"scale/{a}/{b}"] += share * by_scale
    return total, found


@dataclass(frozen=True, eq=False)
class Course:
    """What a descent came to.

    Attributes:
        matrices: by modality (q, k), at the best step.
        step: the best step on the validation slice; 0 is the closed form. Without a slice, the last one.
        losses: mean training loss since the look before, at each look.
        scores: by step, what the validation slice gave.
    """

    matrices: Parameters
    step: int
    losses: Mapping[int, float]
    scores: Mapping[int, float]


def descend(
    variates: Mapping[str, Array],
    present: Mapping[str, NDArray[np.bool_]],
    media: Mapping[str, NDArray[np.uint64]],
    start: Parameters,
    loss: str,
    spectrum: Array | None = None,
    steps: int = STEPS,
    validate: Callable[[Parameters], float] | None = None,
) -> Course:
    """Adam on minibatches, with noise on the variates as augmentation; the same records give the same bytes.

    The rate falls as if all STEPS were taken, so that fewer `steps` stop on the way. Where the validation slice has not
    seen anything better for PATIENCE steps, the descent ends.

    Args:
        variates: by modality (n, q), of unit variance; zeros where a record lacks it.
        media: by modality a number for each medium, (n,): equal ones are no wrong answers to each other.
        start: by modality (q, k).
        validate: gives a score of matrices, higher is better; the best look wins.
    """
    random = np.random.default_rng(0)
    function, scale = LOSSES[loss]
    names, count = sorted(variates), len(next(iter(present.values())))
    first_scale = np.array(scale if spectrum is None else (0.0, 0.0), np.float32)  # PMI scores are logits as they are
    parameters = {**start, **{f"scale/{a}/{b}": first_scale for a, b in combinations(names, 2)}}
    average, slow, fast = dict(parameters), _zeros(parameters), _zeros(parameters)
    deviation = {name: variates[name][present[name]].std(axis=0) for name in names}
    scores = {0: validate(start)} if validate else {}
    best, best_step, losses, since = dict(start), 0, {}, []
    for step in range(1, steps + 1):
        rows = random.permutation(count)[:BATCH]
        noisy = {
            name: variates[name][rows]
            + _NOISE * deviation[name] * random.standard_normal((len(rows), variates[name].shape[1]), np.float32)
            for name in names
        }
        alike = {name: media[name][rows][:, np.newaxis] == media[name][rows] for name in names}
        value, found = gradients(
            noisy, {name: present[name][rows] for name in names}, alike, parameters, function, spectrum
        )
        since.append(value)
        rate = np.float32(_RATE * (1 + np.cos(np.pi * step / STEPS)) / 2)
        for name, gradient in found.items():
            gradient = gradient + np.float32(_PULL) * (parameters[name] - start[name]) if name in start else gradient
            slow[name] = _MOMENTUM * slow[name] + (1 - _MOMENTUM) * gradient
            fast[name] = _DECAY * fast[name] + (1 - _DECAY) * gradient**2
            move = slow[name] / (1 - _MOMENTUM**step) / (np.sqrt(fast[name] / (1 - _DECAY**step)) + _TINY)
            parameters[name] = np.asarray(parameters[name] - rate * move, np.float32)
            smooth = _SMOOTH if step > 1 else 0.0
            average[name] = np.asarray(smooth * average[name] + (1 - smooth) * parameters[name], np.float32)
        if step % EVERY == 0 or step == steps:
            losses[step], since = float(np.mean(since)), []
            if validate:
                scores[step] = validate({name: average[name] for name in start})
            if not validate or scores[step] > scores[best_step]:
                best, best_step = {name: average[name] for name in start}, step
            elif step - best_step >= PATIENCE:
                break
    return Course(best, best_step, losses, scores)


def _through(by_z: Array, by_row: Array, z: Array, raw: Array, spectrum: Array | None) -> Array:
    """The gradient by u M (n, k), from that by the embeddings without their own term, and the sums of the scores'."""
    if spectrum is not None:
        return np.asarray(by_z - by_row[:, np.newaxis] * z * spectrum)
    return np.asarray((by_z - z * np.sum(by_z * z, axis=1, keepdims=True)) / _lengths(raw))


def _softmax(logits: Array) -> tuple[Array, Array]:
    """Of each row, and the cross-entropy of its diagonal entry."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    powers = np.exp(shifted)
    sums = powers.sum(axis=1, keepdims=True)
    return powers / sums, np.log(sums[:, 0]) - np.diag(shifted)


def _lengths(z: Array) -> Array:
    return np.asarray(np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12))


def _zeros(parameters: Mapping[str, Any]) -> Parameters:
    return {name: np.zeros_like(value) for name, value in parameters.items()}
