"""Losses: one pure function each, under the field's names, in at least float32 with autocast off."""

from stagedkd.losses.distribution import coral, gaussian_kl, gaussian_w2, mmd, nst, sliced_w2
from stagedkd.losses.feature import at, hint, pool_to, pool_to_common
from stagedkd.losses.relation import cka, pkt, rkd, sp
from stagedkd.losses.response import ce, dist, dkd, fixmatch, kd, logit_std, pseudo

__all__ = [
    "at", "ce", "cka", "coral", "dist", "dkd", "fixmatch", "gaussian_kl", "gaussian_w2", "hint", "kd", "logit_std",
    "mmd", "nst", "pkt", "pool_to", "pool_to_common", "pseudo", "rkd", "sliced_w2", "sp",
]  # fmt: skip
