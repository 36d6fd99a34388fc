"""Losses: one pure function each, under the field's names, in at least float32 with autocast off; CRD has a memory."""

from stagedkd.losses.contrastive import CRD
from stagedkd.losses.distribution import coral, gaussian_kl, gaussian_w2, mmd, nst, sliced_w2
from stagedkd.losses.feature import at, hint, pool_to, pool_to_common, review
from stagedkd.losses.relation import cka, pkt, rkd, sp, stage_cka
from stagedkd.losses.response import ce, dist, dkd, fixmatch, kd, logit_std, pseudo

__all__ = [
    "CRD",
    "at",
    "ce",
    "cka",
    "coral",
    "dist",
    "dkd",
    "fixmatch",
    "gaussian_kl",
    "gaussian_w2",
    "hint",
    "kd",
    "logit_std",
    "mmd",
    "nst",
    "pkt",
    "pool_to",
    "pool_to_common",
    "pseudo",
    "review",
    "rkd",
    "sliced_w2",
    "sp",
    "stage_cka",
]
