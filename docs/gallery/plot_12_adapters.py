"""
Low-rank adapters
=================

``gconv.adapt`` freezes a model and learns a low-rank update: ``W_k + s A_k B_k`` replaces ``W_k``. ``gconv.merge`` adds
the update to the weights, which gives ordinary layers again.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import gconv
from gconv import GConv
from gconv.operators import conv2d

net = nn.Sequential(GConv(conv2d(8, 16, 3, padding=1)), nn.ReLU(), GConv(conv2d(16, 8, 3, padding=1)))
tuned = gconv.adapt(net, rank=2)
print(tuned.report())

x, target = torch.randn(4, 8, 8, 8), torch.randn(4, 8, 8, 8)
optimiser = torch.optim.Adam((p for p in tuned.parameters() if p.requires_grad), lr=0.02)
losses = []
for _ in range(40):
    optimiser.zero_grad()
    loss = (tuned(x) - target).square().mean()
    loss.backward()
    optimiser.step()
    losses.append(loss.item())

# %%
# The merged model computes the same function, and the update of each tap has rank two.
merged = gconv.merge(tuned)
with torch.no_grad():
    print("largest difference after merging:", float((merged(x) - tuned(x)).abs().max()))
    change = torch.linalg.svdvals(merged[0].weight - net[0].weight)

figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3))
left.plot(losses, color="0.1")
left.set(xlabel="step", ylabel="loss", title="training the adapters")
right.plot(range(1, 9), change.T, "o-", color="0.5")
right.set(xlabel="number", ylabel="singular value", title="update of each of nine taps")
