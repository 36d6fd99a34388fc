"""Losses: one pure function each, under the field's names, in at least float32 with autocast off."""

from stagedkd.losses.distribution import gaussian_w2
from stagedkd.losses.feature import hint, pool_to_common
from stagedkd.losses.relation import sp
from stagedkd.losses.response import ce, kd

__all__ = ["ce", "gaussian_w2", "hint", "kd", "pool_to_common", "sp"]
