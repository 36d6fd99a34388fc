"""Refine labels from out-of-fold predictions: calibration, noise model, posteriors, acceptance, when to stop.

All are pure functions on arrays. Only `refinement_metrics` sees the hidden truth; it is for reports.

Shape legend: n training clips, N classes. Labels are int64 class ids, -1 for none; posteriors float64 rows of sum 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar, nnls

from stagedkd.data.draws import Stream, bits
from stagedkd.spec.schema import Refine

Ids: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]
Mask: TypeAlias = npt.NDArray[np.bool_]

LARGEST_SHIFT = 2.0  # the fraction of a class among the labels may change by this factor
ECE_NOISE = 0.02  # random change of the ECE of a few hundred clips
FEWEST_FLIPS = 0.005  # fraction of the labels that must change for another round
TEMPERATURES = (0.05, 20.0)  # the range of a temperature
LOG_TEMPERATURE_SPREAD = 0.5  # prior deviation of log T from 0: 95% of networks within a factor of 2.7
PRIOR_SPREAD = 0.1  # prior deviation of the entries of a noise matrix from symmetric noise


@dataclass(frozen=True)
class Labels:
    """The labels of the training clips after a round.

    label: (n,), the likeliest class, or -1 (none) for a clip that had no label and is not accepted. posterior: (n, N).
    accepted: (n,), whether the posterior is accepted as a target.
    """

    label: Ids
    posterior: Floats
    accepted: Mask


def deal_folds(groups: Sequence[str], labels: Ids, folds: int, seed: int) -> Ids:
    """Return the fold of each clip. Groups stay whole and are dealt label by label, so that folds have similar classes
    and sizes."""
    members: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    names = sorted(members)
    ranks = bits(seed, Stream.FOLDS, np.arange(len(names), dtype=np.int64))
    main = [int(np.bincount(labels[members[name]] + 1).argmax()) for name in names]
    order = sorted(range(len(names)), key=lambda i: (main[i], int(ranks[i])))
    sizes, fold_of = [0] * folds, np.empty(len(labels), np.int64)
    for turn, i in enumerate(order):
        fold = min(range(folds), key=lambda f: (sizes[f], (f - turn) % folds))
        fold_of[members[names[i]]] = fold
        sizes[fold] += len(members[names[i]])
    return fold_of


def tempered(log_p: Floats, temperature: float) -> Floats:
    """Return softmax(log p / temperature), (n, N)."""
    scaled = log_p / temperature
    unnormalised = np.exp(scaled - scaled.max(1, keepdims=True))
    return unnormalised / unnormalised.sum(1, keepdims=True)


def calibrate(log_p: Floats, labels: Ids) -> float:
    """Find the likeliest temperature T, in 0.05..20, given the n held-out labels: the one of the least
    n * NLL(T) + (log T)^2 / (2 * 0.5^2).

    It is temperature scaling (Guo et al. 2017) with a normal prior on log T around 0 (our formulation). With few clips
    the prior decides: a handful that are all right would otherwise drive T to its bound. With thousands it vanishes.
    """
    n = len(labels)

    def loss(log_temperature: float) -> float:
        prior = log_temperature**2 / (2 * LOG_TEMPERATURE_SPREAD**2)
        return n * negative_log_likelihood(tempered(log_p, float(np.exp(log_temperature))), labels) + prior

    low, high = np.log(TEMPERATURES)
    optimum = minimize_scalar(loss, bounds=(low, high), method="bounded")
    return float(np.exp(optimum.x))


def bound_hit(temperature: float) -> float | None:
    """Return the bound of the range of temperatures that a temperature is at, within 1%; None if it is inside."""
    return next((bound for bound in TEMPERATURES if abs(np.log(temperature / bound)) < 0.01), None)


def negative_log_likelihood(p: Floats, labels: Ids) -> float:
    """Return the negative log-likelihood of labels, the mean over the clips."""
    return float(-np.log(np.maximum(p[np.arange(len(labels)), labels], 1e-12)).mean())


def noise_matrix(p: Floats, labels: Ids, clean: Mask, noisy: Mask) -> Floats:
    """Estimate Noise[c, y] = P(label y | class c) from predictions for clean and noisy clips (our formulation).

    The mean prediction of the noisy clips with label y is a mixture over c of the mean predictions of the clean clips
    of class c, with the weights P(c | y). Non-negative least squares finds these weights. They are drawn towards
    symmetric noise, the more strongly the fewer clips there are. Its rate r solves
    mean p(y) = (1 - r) A + r (1 - A) / (N - 1), where A is the mean p of the clean clips' classes.

    Args:
        p: (n, N) calibrated out-of-fold predictions. labels: (n,). clean, noisy: (n,), which labels are clean or noisy.
    """
    count = p.shape[1]
    clean_mean = float(p[clean, labels[clean]].mean())
    noisy_mean = float(p[noisy, labels[noisy]].mean()) if noisy.any() else clean_mean
    chance = (1 - clean_mean) / max(1, count - 1)
    rate = float(np.clip((clean_mean - noisy_mean) / max(clean_mean - chance, 1e-6), 0.01, 0.95))
    prior = _symmetric(count, rate)
    known = [c for c in range(count) if (clean & (labels == c)).any()]
    mean_of_class = np.array([p[clean & (labels == c)].mean(0) for c in known])
    fewest = min(int((clean & (labels == c)).sum()) for c in known)
    joint = np.zeros((count, count))
    for y in range(count):
        carriers = noisy & (labels == y)
        if not carriers.any():
            joint[:, y] = prior[:, y] / count
            continue
        target = prior[known, y] / prior[known, y].sum()
        spread = float(p[carriers].var(0).mean()) * (1 / carriers.sum() + 1 / fewest)
        pull = (spread / PRIOR_SPREAD**2) ** 0.5
        rows = np.vstack([mean_of_class.T, pull * np.eye(len(known))])
        weights, _ = nnls(rows, np.concatenate([p[carriers].mean(0), pull * target]))
        joint[known, y] = weights / max(weights.sum(), 1e-12) * carriers.sum()
    joint = joint + 1e-6 * prior
    return joint / joint.sum(1, keepdims=True)


def _symmetric(count: int, rate: float) -> Floats:
    """Return the matrix of symmetric noise."""
    if count < 2:
        return np.ones((1, 1))
    return np.full((count, count), rate / (count - 1)) + np.eye(count) * (1 - rate - rate / (count - 1))


def posteriors(p: Floats, labels: Ids, noise: Floats, prior: Floats, align: float) -> Floats:
    """Return q_i(c), proportional to p_i(c) * Noise[c, y_i] * ((prior_c + 1e-6) / (phat_c + 1e-6))^align. The factor
    Noise is omitted for a clip without a label.

    Args:
        prior: (N,), the fractions of the classes, towards which the mean phat of the predictions is drawn.
    """
    evidence = np.where(labels[:, None] >= 0, noise[:, np.maximum(labels, 0)].T, 1.0)
    unnormalised = p * evidence * ((prior + 1e-6) / (p.mean(0) + 1e-6)) ** align
    return unnormalised / np.maximum(unnormalised.sum(1, keepdims=True), 1e-300)


def mixture(one: Floats, other: Floats) -> Floats:
    """Return w * one + (1 - w) * other, w = H(other) / (H(one) + H(other)) of each clip: the surer one counts more."""
    first, second = _entropy(one), _entropy(other)
    weight = ((second + 1e-12) / (first + second + 2e-12))[:, None]
    return weight * one + (1 - weight) * other


def _entropy(p: Floats) -> Floats:
    """Return the entropy of each row."""
    return -(p * np.log(np.maximum(p, 1e-300))).sum(1)


def reaches(posterior: Floats, accept: float, threshold: str) -> Mask:
    """Find the clips whose largest posterior reaches the threshold (n,): `accept`, or under `flexmatch`
    accept * b / (2 - b), where b is the number of clips of the class that reach `accept`, divided by the largest such
    number of any class (FlexMatch, Zhang et al. 2021, eq. 5 to 11)."""
    sure, classes = posterior.max(1), posterior.argmax(1)
    if threshold == "fixed":
        return sure >= accept
    counts = np.bincount(classes[sure >= accept], minlength=posterior.shape[1]).astype(float)
    status = counts / max(1.0, counts.max())  # beta in the paper, how well a class is learnt
    return sure >= (accept * status / (2 - status))[classes] if counts.max() else sure >= accept


def next_labels(rule: Refine, predicted: Sequence[Floats], original: Ids, clean: Mask, before: Labels) -> Labels:
    """Return the labels after one round of a rule.

    Args:
        predicted: calibrated out-of-fold predictions (n, N) of one network, or of two that complement each other.
        original: the labels before the first round. clean: which of them are certainly right and do not change.
        before: the labels of the previous round.
    """
    count = predicted[0].shape[1]
    p = predicted[0] if len(predicted) == 1 else mixture(predicted[0], predicted[1])
    if rule.kind == "ema":
        old = np.where(before.posterior.sum(1, keepdims=True) > 0, before.posterior, p)
        q = rule.decay * old + (1 - rule.decay) * p
        accepted = (original >= 0) | reaches(q, rule.accept, rule.threshold)
    else:
        noisy = (original >= 0) & ~clean
        prior = np.bincount(original[clean], minlength=count) / max(1, clean.sum())
        each = [
            posteriors(o, original, noise_matrix(o, original, clean, noisy), prior, rule.align) for o in (*predicted, p)
        ]
        q = each[-1]
        accepted = reaches(q, rule.accept, rule.threshold)
        if len(predicted) == 2:
            accepted |= (each[0].argmax(1) == each[1].argmax(1)) & (each[0].argmax(1) == q.argmax(1))
    q = np.where(clean[:, None], np.eye(count)[np.maximum(original, 0)], q)
    accepted = accepted | clean
    label = np.where((original >= 0) | accepted, q.argmax(1), -1)
    return Labels(label.astype(np.int64), np.eye(count)[q.argmax(1)] if rule.targets == "hard" else q, accepted)


def first_labels(original: Ids, classes: int) -> Labels:
    """Return the labels before the first round: each label with certainty, and a posterior of zeros without a label."""
    known = original >= 0
    return Labels(original, np.eye(classes)[np.maximum(original, 0)] * known[:, None], known)


def flips(before: Ids, after: Ids) -> float:
    """Return the fraction of the labels that a round changed, added or removed."""
    known = (before >= 0) | (after >= 0)
    return float((before[known] != after[known]).mean()) if known.any() else 0.0


def shifted(before: Ids, after: Ids, classes: int) -> list[int]:
    """Find the classes with 5 labels or more whose fraction of the labels changed by more than a factor of 2."""
    old, new = (np.bincount(labels[labels >= 0], minlength=classes) for labels in (before, after))
    old_part, new_part = old / max(1, old.sum()), new / max(1, new.sum())
    moved = (new_part > LARGEST_SHIFT * old_part) | (new_part < old_part / LARGEST_SHIFT)
    return [int(c) for c in np.flatnonzero(moved & (old >= 5))]


def near_chance(right: int, of: int, classes: int) -> bool:
    """Return whether an accuracy is within two standard errors of guessing."""
    chance = 1 / classes
    return right / max(1, of) <= chance + 2 * (chance * (1 - chance) / max(1, of)) ** 0.5


def refinement_metrics(before: Ids, after: Labels, true: Ids, judged: Mask, classes: Sequence[str]) -> dict[str, Any]:
    """Compare a round with the hidden truth, only for reports. `judged`: (n,), clips whose true class is known.

    accuracy_before, accuracy_after: over the clips that had a label. coverage: fraction of the clips that are accepted.
    precision: fraction of these that are right. recall, of each class: fraction of its clips that have its label
    afterwards. wrong_to_right, right_to_wrong: numbers of clips.
    """
    had = judged & (before >= 0)
    accepted, right = judged & after.accepted, after.label == true
    was = before == true
    return {
        "accuracy_before": float(was[had].mean()) if had.any() else None,
        "accuracy_after": float(right[had].mean()) if had.any() else None,
        "coverage": float(after.accepted.mean()),
        "precision": float(right[accepted].mean()) if accepted.any() else None,
        "wrong_to_right": int((had & ~was & right).sum()),
        "right_to_wrong": int((had & was & ~right).sum()),
        "recall": {
            name: float(right[judged & (true == c)].mean())
            for c, name in enumerate(classes)
            if (judged & (true == c)).any()
        },
    }
