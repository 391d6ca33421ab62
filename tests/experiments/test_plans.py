"""The report on the planner: held-out cases are drawn apart, and a miss counts where a second look finds it, too."""

from dataclasses import replace

import pytest
import torch

from experiments.planner import plans
from experiments.planner.cases import drawn, graphs, grids
from gconv import GConv
from gconv.lowering import LOWERINGS
from gconv.operators import conv2d, gcn
from gconv.operators.shapes import ring


@pytest.mark.parametrize("on_grids", [True, False])
def test_held_out_cases_follow_their_seed_and_are_none_of_the_others(on_grids):
    names = [[one.name for one in drawn(12, seed, on_grids)] for seed in (1, 1, 2)]
    assert names[0] == names[1] != names[2] and len(set(names[0])) == 12
    assert not {*names[0], *names[2]} & {one.name for one in (*graphs(), *grids())}


@pytest.mark.parametrize(("again", "close", "best"), [((1.0, 2.0), 1.0, "native"), ((2.0, 1.0), 0.0, "im2col")])
def test_a_miss_counts_where_a_second_look_finds_it_too(monkeypatch, again, close, best):
    looks = []
    case = next(case for case in plans.cases(plans.Config(only="grids", rounds=2)) if not case.training)

    def plan(layer, x, place, measure):
        made = plain_plan(layer, x, place)
        first = {"native": (3.0,), "im2col": (1.0,), "fft": (2.9,)}
        seen = [replace(c, measured=first.get(c.name, ())) for c in made.candidates]
        native = next(option for option in LOWERINGS if option.name == "native")
        return replace(made, candidates=tuple(seen), chosen=native)

    def second(layer, x, place, names, rounds):
        looks.append((sorted(names), rounds))
        return dict(zip(("native", "im2col"), again, strict=True))

    plain_plan = GConv.plan
    monkeypatch.setattr(GConv, "plan", plan)
    monkeypatch.setattr(plans, "again", second)
    found = plans.run(case).metrics
    assert looks == [(["im2col", "native"], 2 * plans.AGAIN)], "what is within 10 % is not measured again"
    assert (found["close"], found["best"]) == (close, best)
    assert found["first_ms"] == {"im2col": 1e3, "native": 3e3} and found["ms"]["fft"] == 2.9e3


def test_a_second_look_measures_those_alone():
    layer, x = GConv(conv2d(2, 3, 3)), torch.randn(2, 2, 6, 6, requires_grad=True)
    took = plans.again(layer, x, None, ["native", "im2col"], 1)
    assert took.keys() == {"native", "im2col"} and min(took.values()) > 0
    graph = ring()
    assert plans.again(GConv(gcn(3, 4)), torch.randn(7, 3), graph, ["sparse:aggregate"], 1).keys() == {
        "sparse:aggregate"
    }
