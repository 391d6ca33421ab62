"""Laws of the software: caches, serialisation, low precision, compilation."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace

import torch
from torch import Tensor

from gconv.domains import Edges
from gconv.errors import InputTypeError
from gconv.module import GConv
from gconv.spec import Domain, OperatorSpec, Sample
from gconv.testing.case import TOL, Case, a_law, random_like, renamed


@a_law
def law_caches(case: Case) -> bool:
    """Caches are never stale: after other domains and new weights, a layer gives the outputs of a new layer."""
    case(case.x)
    if isinstance(case.domain, Edges):
        weight = case.domain.edge_weight
        other = replace(renamed(case.domain, case.x)[0], edge_weight=None if weight is None else 2 * weight)
        case.close("on a second graph", case(case.x, domain=other), _by_new_layer(case, other))
    with torch.no_grad():
        for p in case.layer.parameters():
            p.add_(0.5)
    case.close("after the weights changed", case(case.x), _by_new_layer(case, case.domain))
    return True


def _by_new_layer(case: Case, domain: Domain) -> Tensor:
    new = GConv(case.layer.spec, dtype=case.x.dtype).eval()
    new.load_state_dict(case.layer.state_dict())
    return replace(case, layer=new)(case.x, "dense", pickle.loads(pickle.dumps(domain)))


@a_law
def law_round_trips(case: Case) -> bool:
    """Specs round-trip through JSON and repr; layers through state_dict, pickle and deepcopy; reprs show the spec."""
    if case.dtype != torch.float64:
        return False
    spec = case.sample.spec
    for how, again in (
        ("to_dict and JSON", OperatorSpec.from_dict(json.loads(json.dumps(spec.to_dict())))),
        ("its repr", OperatorSpec.parse(repr(spec))),
    ):
        same = again == spec and hash(again) == hash(spec)
        if not same or (again.structure, again.mixing) != (spec.structure, spec.mixing):
            case.fail(f"through {how} it became {again!r}.")
    if repr(spec) not in repr(case.layer):
        case.fail(f"the layer prints as {case.layer!r}, without its spec.")
    loaded = GConv(spec, dtype=case.dtype).eval()
    loaded.load_state_dict(case.layer.state_dict())
    y = case(case.x)
    for how, layer in (
        ("state_dict", loaded),
        ("pickle", pickle.loads(pickle.dumps(case.layer))),
        ("deepcopy", copy.deepcopy(case.layer)),
    ):
        case.close(f"after {how}", replace(case, layer=layer)(case.x), y)
    return True


@a_law
def law_bfloat16(case: Case) -> bool:
    """In bfloat16 the error of every lowering is at most 3 % of the largest entry in float32."""
    if case.dtype != torch.float32:
        return False
    want, half = case(case.x, "dense"), copy.deepcopy(case.layer).bfloat16()
    for name in case.lowerings:
        got = replace(case, layer=half)(case.x.bfloat16(), name)
        if got.dtype != torch.bfloat16:
            case.fail(f"{name} turns bfloat16 into {got.dtype}.")
        case.close(f"{name} in bfloat16", got, want, 0.03)
    return True


@a_law
def law_complex(case: Case) -> bool:
    """If S does not depend on x, the real and imaginary parts of a complex signal are convolved, or it is refused."""
    if case.dtype != torch.float64 or case.structure.kind == "adaptive":
        return False
    imaginary = random_like(case.x)
    want = torch.complex(case(case.x), case(imaginary) - case(torch.zeros_like(case.x)))
    layer, carried = GConv(case.layer.spec, dtype=torch.complex128).eval(), False
    layer.load_state_dict(case.layer.state_dict())
    for name in case.lowerings:
        try:
            got = replace(case, layer=layer)(torch.complex(case.x, imaginary), name)
        except InputTypeError:
            continue
        if got.dtype != torch.complex128:
            case.fail(f"{name} turns complex128 into {got.dtype}.")
        case.close(f"{name} of complex numbers", torch.view_as_real(got), torch.view_as_real(want))
        carried = True
    return carried


def law_compile(sample: Sample, dtype: torch.dtype, backend: str = "aot_eager") -> bool:
    """torch.compile(fullgraph=True) gives the same outputs and gradients as eager. Takes seconds."""
    case = Case.of(sample, dtype)
    want = case.gradients(None, edges=False)
    compiled = torch.compile(case.layer, fullgraph=True, backend=backend)
    try:
        found = replace(case, layer=compiled).gradients(None, edges=False)  # type: ignore[arg-type]
    except torch._dynamo.exc.TorchDynamoException as error:
        raise AssertionError(f"{sample.name}: torch.compile(fullgraph=True) cannot trace it: {error}") from None
    got = {what.replace("_orig_mod.", ""): value for what, value in found.items()}
    for what in want:
        case.close(f"{what}, compiled", got[what], want[what], 10 * TOL[dtype])
    return True
