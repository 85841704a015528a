"""Routers, told by the weights that they give random logits."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np

from ..layers import Router
from ..tensor.evaluate import apply

Array = np.ndarray
NEAR = 1e-5  # exporters add 1e-9 and the like to what they divide by
PLAIN = "in experts use linear, activation, linear"
ROUTER = "weight the best experts by the softmax of the logits over all experts or over the chosen ones"


class NoMixture(Exception):
    """Why a value is no mixture of experts that can be taken; no reason where it is nothing like one."""

    def __init__(self, reason: str = "", hint: str = ""):
        super().__init__(reason)
        self.reason, self.hint = reason, hint


class OfAll(NoMixture):
    """What would be experts read several tokens together: what is chosen may be tokens, not experts."""


class ReadsMore(NoMixture):
    """What is chosen for a token reads others too, so that it is no expert: heads, keys, or a choice of another kind."""


def explain(logits: Array, weights: Array, alone: Callable[[], bool]) -> tuple[Router, list[tuple[int, float]]]:
    """The router that gives logits [N, E] the weights [N, M] of M networks, and which expert each is, with what factor.

    alone: whether a token's weights hang on its own logits only.
    Raises NoMixture with what the weights are.
    """
    most = int((np.abs(weights) > 0).sum(axis=1).max())
    if most == 0 or (weights == weights[0]).all() and weights.shape[1] < logits.shape[1]:
        raise NoMixture
    sizes = [k for k in (most, logits.shape[1]) if k <= logits.shape[1]]
    for k, score, renormalise in product(dict.fromkeys(sizes), ("softmax", "sigmoid"), (False, True)):
        router = Router(k, renormalise, score)
        wanted = apply(router, [logits], np.float64)
        found = [_column(w, wanted) for w in weights.T]
        experts = [f for f in found if f is not None]
        if len({e for e, _ in experts}) == weights.shape[1]:
            return router, experts
    raise NoMixture(_described(logits, weights, most, alone), ROUTER)


def _column(weight: Array, wanted: Array) -> tuple[int, float] | None:
    """(expert, factor) where `weight` is the factor times that expert's column."""
    factors = (weight @ wanted) / np.maximum((wanted * wanted).sum(axis=0), 1e-300)
    errors = np.abs(weight[:, None] - factors * wanted).max(axis=0)
    best = int(errors.argmin())
    factor = float(factors[best])
    if errors[best] > NEAR * np.abs(weight).max() or factor == 0:
        return None
    return best, float(f"{factor:.5g}") if abs(factor / float(f"{factor:.5g}") - 1) < 1e-7 else factor


def _described(logits: Array, weights: Array, most: int, alone: Callable[[], bool]) -> str:
    """What the weights of a router are that none of those known gives."""
    if not alone():
        return "the weights of a token's experts depend on other tokens, as with expert capacity"
    if weights.shape[1] != logits.shape[1]:
        return f"{weights.shape[1]} experts' networks for a router of {logits.shape[1]}"
    rank = np.argsort(np.argsort(-logits, axis=1), axis=1)
    likely = ((weights != 0).T.astype(float) @ (rank < most)).argmax(axis=1)
    if len(set(likely)) == len(likely):
        weights = weights[:, np.argsort(likely)]
    chosen = weights != 0
    used = weights[chosen]
    if not (chosen == (rank < most)).all():
        if np.allclose(used, 1 / (1 + np.exp(-logits[chosen]))):
            return "the experts are weighted by the sigmoid of their logits, but chosen by something else"
        ranks = rank[chosen] + 1
        return f"the experts that are weighted are not the best {most}, but have ranks from {ranks.min()} to {ranks.max()}"
    if np.allclose(used, used[0]):
        return "the chosen experts are summed without the weights of their router"
    if np.allclose(used, logits[chosen]):
        return "the chosen experts are weighted by their logits as they are"
    scores = apply(Router(most), [logits], np.float64)
    for m in range(most + 1, logits.shape[1] + 1):
        whole = apply(Router(m), [logits], np.float64).sum(axis=1, keepdims=True)
        if np.allclose(weights, scores / whole, rtol=NEAR, atol=NEAR):
            return f"the weights are normalised over the best {m} experts, of which {most} are used"
    return "the weights of the experts are neither the softmax nor the sigmoid of their own logits"
