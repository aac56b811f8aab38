"""Standardise a table whose columns have different scales: fitted in one pass, part of the model, invertible."""

from __future__ import annotations

import torch
from sklearn.datasets import load_wine
from torch import nn

import batchnorm

values, targets = load_wine(return_X_y=True)
x, labels = torch.tensor(values, dtype=torch.float32), torch.tensor(targets)  # 178 wines, 13 measurements, 3 growers
order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
train, test = order[:120], order[120:]

# Fitted on the training rows only, batch by batch; how they are cut does not matter.
standardize = batchnorm.Standardize(13).fit(x[train].split(32))
whole = batchnorm.Standardize(13).fit(x[train])
print("raw standard deviations from", f"{x[train].std(0).min():.2f} to {x[train].std(0).max():.2f}")
y = standardize(x[train])
print("standardised: largest |mean|", f"{y.mean(0).abs().max():.0e},", "standard deviations 1:", end=" ")
print(torch.allclose(y.std(0, correction=0), torch.ones(13), atol=1e-5))
print("the same from one batch as from four:", torch.allclose(standardize.std, whole.std, rtol=1e-12))
print("inverse gives the table back:", torch.allclose(standardize.inverse(y), x[train], rtol=1e-5))


def accuracy(*before: nn.Module) -> float:
    torch.manual_seed(0)
    model = nn.Sequential(*before, nn.Linear(13, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(200):
        loss = nn.functional.cross_entropy(model(x[train]), labels[train])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (model(x[test]).argmax(1) == labels[test]).double().mean().item()


raw, standardised = accuracy(), accuracy(standardize)
print(f"a linear classifier on {len(test)} other wines: raw input {raw:.0%}, standardised {standardised:.0%}")
