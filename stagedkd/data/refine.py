"""Labels refined from out-of-fold predictions: calibration, noise model, posteriors, acceptance, when to stop.

Pure functions on arrays; nothing here knows the hidden truth but `figures`, which is for reports.

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

LARGEST_SHIFT = 2.0  # a class's share among the labels may move by this factor
ECE_NOISE = 0.02  # what the ECE of a few hundred clips moves by itself
FEWEST_FLIPS = 0.005  # share of the labels that must change for another round
PRIOR_SPREAD = 0.1  # how far the shares of a noise matrix are from symmetric noise before anything is seen


@dataclass(frozen=True)
class Labels:
    """Labels of the training clips as a round leaves them: the likeliest class (-1: none, for a clip that came without
    label and is not accepted), the posterior (n, N), and whether that is accepted as a target."""

    label: Ids
    posterior: Floats
    accepted: Mask


def deal_folds(groups: Sequence[str], labels: Ids, folds: int, seed: int) -> Ids:
    """The fold of each clip: whole groups, in turn over labels, so that folds are alike in classes and size."""
    members: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    names = sorted(members)
    ranks = bits(seed, Stream.FOLDS, np.arange(len(names), dtype=np.int64))
    main = [int(np.bincount(labels[members[name]] + 1).argmax()) for name in names]
    order = sorted(range(len(names)), key=lambda i: (main[i], int(ranks[i])))
    sizes, found = [0] * folds, np.empty(len(labels), np.int64)
    for turn, i in enumerate(order):
        fold = min(range(folds), key=lambda f: (sizes[f], (f - turn) % folds))
        found[members[names[i]]] = fold
        sizes[fold] += len(members[names[i]])
    return found


def tempered(log_p: Floats, temperature: float) -> Floats:
    """softmax(log p / temperature), (n, N)."""
    scaled = log_p / temperature
    raised = np.exp(scaled - scaled.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


def calibrate(log_p: Floats, labels: Ids) -> float:
    """The temperature that minimises the negative log-likelihood of held-out labels (Guo et al. 2017), in 0.05..20."""

    def loss(log_temperature: float) -> float:
        return negative_log_likelihood(tempered(log_p, float(np.exp(log_temperature))), labels)

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return float(np.exp(found.x))


def negative_log_likelihood(p: Floats, labels: Ids) -> float:
    """Mean over the clips."""
    return float(-np.log(np.maximum(p[np.arange(len(labels)), labels], 1e-12)).mean())


def noise_matrix(p: Floats, given: Ids, clean: Mask, noisy: Mask) -> Floats:
    """Noise[c, y] = P(given label y | class c), from what the network says of clean and of noisy clips (our
    formulation).

    The mean prediction of the noisy clips that carry y is a mixture over c of the mean predictions of the clean clips
    of class c, with the shares P(c | y): non-negative least squares finds them. They are drawn towards symmetric noise,
    whose rate r solves mean p(y) = (1 - r) A + r (1 - A) / (N - 1) with A the mean p of the clean clips' classes; the
    more so, the fewer clips there are.

    Args:
        p: (n, N) calibrated out-of-fold predictions. given: labels. clean, noisy: which of them are, (n,).
    """
    count = p.shape[1]
    right = float(p[clean, given[clean]].mean())
    agree = float(p[noisy, given[noisy]].mean()) if noisy.any() else right
    chance = (1 - right) / max(1, count - 1)
    rate = float(np.clip((right - agree) / max(right - chance, 1e-6), 0.01, 0.95))
    prior = _symmetric(count, rate)
    known = [c for c in range(count) if (clean & (given == c)).any()]
    looks = np.array([p[clean & (given == c)].mean(0) for c in known])
    fewest = min(int((clean & (given == c)).sum()) for c in known)
    joint = np.zeros((count, count))
    for y in range(count):
        of = noisy & (given == y)
        if not of.any():
            joint[:, y] = prior[:, y] / count
            continue
        toward = prior[known, y] / prior[known, y].sum()
        spread = float(p[of].var(0).mean()) * (1 / of.sum() + 1 / fewest)
        pull = (spread / PRIOR_SPREAD**2) ** 0.5
        rows = np.vstack([looks.T, pull * np.eye(len(known))])
        share, _ = nnls(rows, np.concatenate([p[of].mean(0), pull * toward]))
        joint[known, y] = share / max(share.sum(), 1e-12) * of.sum()
    joint = joint + 1e-6 * prior
    return joint / joint.sum(1, keepdims=True)


def _symmetric(count: int, rate: float) -> Floats:
    if count < 2:
        return np.ones((1, 1))
    return np.full((count, count), rate / (count - 1)) + np.eye(count) * (1 - rate - rate / (count - 1))


def posteriors(p: Floats, given: Ids, noise: Floats, prior: Floats, align: float) -> Floats:
    """q_i(c) ~ p_i(c) * Noise[c, y_i] * ((prior_c + 1e-6) / (phat_c + 1e-6))^align; without a label, without Noise.

    Args:
        prior: class shares, (N,), which the predictions' mean phat is drawn towards.
    """
    evidence = np.where(given[:, None] >= 0, noise[:, np.maximum(given, 0)].T, 1.0)
    found = p * evidence * ((prior + 1e-6) / (p.mean(0) + 1e-6)) ** align
    return found / np.maximum(found.sum(1, keepdims=True), 1e-300)


def mixture(one: Floats, other: Floats) -> Floats:
    """w * one + (1 - w) * other with w = H(other) / (H(one) + H(other)) of each clip: the surer one counts more."""
    first, second = _entropy(one), _entropy(other)
    share = ((second + 1e-12) / (first + second + 2e-12))[:, None]
    return share * one + (1 - share) * other


def _entropy(p: Floats) -> Floats:
    return -(p * np.log(np.maximum(p, 1e-300))).sum(1)


def reaches(posterior: Floats, accept: float, threshold: str) -> Mask:
    """Clips whose posterior is sure enough: at `accept`, or under `flexmatch` at accept * b / (2 - b), where b is how
    many clips reach `accept` in the class, over the most in any class (FlexMatch, Zhang et al. 2021, eq. 5 to 11)."""
    sure, classes = posterior.max(1), posterior.argmax(1)
    if threshold == "fixed":
        return sure >= accept
    learnt = np.bincount(classes[sure >= accept], minlength=posterior.shape[1]).astype(float)
    share = learnt / max(1.0, learnt.max())
    return sure >= (accept * share / (2 - share))[classes] if learnt.max() else sure >= accept


def next_labels(rule: Refine, predicted: Sequence[Floats], given: Ids, clean: Mask, before: Labels) -> Labels:
    """One round of a rule.

    Args:
        predicted: calibrated out-of-fold predictions (n, N) of one network, or of two that complement each other.
        given: the labels that the data came with. clean: which of them are sure, and stay.
        before: the labels of the round before.
    """
    count = predicted[0].shape[1]
    p = predicted[0] if len(predicted) == 1 else mixture(predicted[0], predicted[1])
    if rule.kind == "ema":
        old = np.where(before.posterior.sum(1, keepdims=True) > 0, before.posterior, p)
        q = rule.decay * old + (1 - rule.decay) * p
        accepted = (given >= 0) | reaches(q, rule.accept, rule.threshold)
    else:
        noisy = (given >= 0) & ~clean
        prior = np.bincount(given[clean], minlength=count) / max(1, clean.sum())
        each = [posteriors(o, given, noise_matrix(o, given, clean, noisy), prior, rule.align) for o in (*predicted, p)]
        q = each[-1]
        accepted = reaches(q, rule.accept, rule.threshold)
        if len(predicted) == 2:
            accepted |= (each[0].argmax(1) == each[1].argmax(1)) & (each[0].argmax(1) == q.argmax(1))
    q = np.where(clean[:, None], np.eye(count)[np.maximum(given, 0)], q)
    accepted = accepted | clean
    label = np.where((given >= 0) | accepted, q.argmax(1), -1)
    return Labels(label.astype(np.int64), np.eye(count)[q.argmax(1)] if rule.targets == "hard" else q, accepted)


def first_labels(given: Ids, classes: int) -> Labels:
    """What stands before the first round: the given labels, each sure of itself; no posterior where there is none."""
    known = given >= 0
    return Labels(given, np.eye(classes)[np.maximum(given, 0)] * known[:, None], known)


def flips(before: Ids, after: Ids) -> float:
    """Share of the labels that a round changed, gave or took."""
    known = (before >= 0) | (after >= 0)
    return float((before[known] != after[known]).mean()) if known.any() else 0.0


def shifted(before: Ids, after: Ids, classes: int) -> list[int]:
    """Classes whose share among the labels moved by more than a factor of 2, among classes of 5 labels and more."""
    one, two = (np.bincount(labels[labels >= 0], minlength=classes) for labels in (before, after))
    share, then = one / max(1, one.sum()), two / max(1, two.sum())
    moved = (then > LARGEST_SHIFT * share) | (then < share / LARGEST_SHIFT)
    return [int(c) for c in np.flatnonzero(moved & (one >= 5))]


def near_chance(right: int, of: int, classes: int) -> bool:
    """Whether an accuracy is within two standard errors of guessing."""
    chance = 1 / classes
    return right / max(1, of) <= chance + 2 * (chance * (1 - chance) / max(1, of)) ** 0.5


def figures(before: Ids, after: Labels, true: Ids, judged: Mask, classes: Sequence[str]) -> dict[str, Any]:
    """What a round did, by the hidden truth: for reports alone. `judged`: clips whose truth is known.

    accuracy before and after over the clips that had a label; coverage: share of clips that are accepted; precision:
    share of them that are right; recall per class: share of its clips that carry its label afterwards.
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
