"""Laws: properties that every operator must have, as functions that test an operator.

A law takes a `Sample` (a spec, a domain, a number of channels) and a dtype. It returns True if the sample satisfies it,
False if the law does not apply (a maximum has no adjoint), and raises AssertionError with the error if the sample
violates it. `LAWS` contains all of them; `check_operator` runs them.

>>> from gconv.operators import cheb
>>> from gconv.operators.shapes import ring
>>> applied = check_operator(cheb(3, 4, k=3), ring, 3)
>>> applied["law_adjoint"], applied["law_translation"]
(True, False)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from gconv.arguments import checked
from gconv.spec import Domain, OperatorSpec, Sample
from gconv.testing.algebra import (
    law_adjoint,
    law_hand_rule,
    law_linearity,
    law_lowerings,
    law_norm,
    law_receptive_field,
    law_row_stochastic,
)
from gconv.testing.case import LAWS, TOL, Case, Law, assert_close
from gconv.testing.derivatives import law_gradcheck, law_transforms
from gconv.testing.domain import law_batch, law_edge_cases, law_permutation, law_translation, law_union
from gconv.testing.isolation import (
    law_domains_in_turn,
    law_empty_batches_learn,
    law_homogeneous,
    law_no_coefficient_overflows,
    law_not_finite_stays_in_its_field,
    law_results_are_their_callers,
    law_samples_apart,
)
from gconv.testing.software import law_bfloat16, law_caches, law_compile, law_complex, law_round_trips

__all__ = [
    "LAWS",
    "TOL",
    "Case",
    "Law",
    "assert_close",
    "check_operator",
    "law_adjoint",
    "law_batch",
    "law_bfloat16",
    "law_caches",
    "law_compile",
    "law_complex",
    "law_domains_in_turn",
    "law_edge_cases",
    "law_empty_batches_learn",
    "law_gradcheck",
    "law_hand_rule",
    "law_homogeneous",
    "law_linearity",
    "law_lowerings",
    "law_no_coefficient_overflows",
    "law_norm",
    "law_not_finite_stays_in_its_field",
    "law_permutation",
    "law_receptive_field",
    "law_results_are_their_callers",
    "law_round_trips",
    "law_row_stochastic",
    "law_samples_apart",
    "law_transforms",
    "law_translation",
    "law_union",
]


@checked
def check_operator(
    operator: Sample | OperatorSpec,
    domain: Callable[[], Domain] | Domain | None = None,
    channels: int | None = None,
    *,
    dtypes: Iterable[torch.dtype] = tuple(TOL),
    laws: Iterable[Law] | None = None,
) -> dict[str, bool]:
    """Test an operator by the laws.

    Args:
        operator: a sample, or a spec.
        domain: for a spec, a domain that fits it, or a function that returns one.
        channels: for a spec, the number of input channels.
        dtypes: the dtypes in which each law is tested.
        laws: by default all of `LAWS`, which does not include `law_compile`, because it takes seconds.

    Returns:
        for each law whether it applies to the operator.

    Raises:
        AssertionError: if a law is violated; the message says which, where and by how much.
        TypeError: if a spec is given without domain and channels.
        ValueError: if there are no dtypes.
    """
    if isinstance(operator, OperatorSpec):
        if domain is None or channels is None:
            raise TypeError("A spec is checked on a domain and a number of channels: give all three.")
        place = domain
        operator = Sample(operator, place if callable(place) else lambda: place, channels)
    dtypes = tuple(dtypes)  # an iterator would be exhausted by the first law
    if not dtypes:
        raise ValueError("check_operator needs at least one dtype, such as torch.float64, but dtypes is empty.")
    return {
        law.__name__: any([law(operator, dtype) for dtype in dtypes])
        for law in (LAWS.values() if laws is None else laws)
    }
