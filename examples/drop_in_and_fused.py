"""Train the same small network three times: torch's batch norm, the drop-in, and norm and activation as one layer."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import batchnorm

STEPS, BATCH = 40, 128


def network(norms: str) -> nn.Sequential:
    torch.manual_seed(0)  # the same initial weights each time: norm layers draw nothing

    def norm_and_relu(channels: int) -> list[nn.Module]:
        if norms == "torch":
            return [nn.BatchNorm2d(channels), nn.ReLU()]
        if norms == "drop-in":
            return [batchnorm.BatchNorm2d(channels), nn.ReLU()]
        return [batchnorm.BatchNormAct2d(channels, activation="relu")]

    convolutions = (nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.Conv2d(16, 32, 3, stride=2, bias=False))
    first, second = (
        nn.Sequential(conv, *norm_and_relu(width)) for conv, width in zip(convolutions, (16, 32), strict=True)
    )
    return nn.Sequential(first, second, nn.Flatten(), nn.Linear(32 * 3 * 3, 10))


def losses(model: nn.Module, images: Tensor, labels: Tensor) -> list[float]:
    optimizer = torch.optim.SGD(batchnorm.parameter_groups(model, weight_decay=1e-4), lr=0.1, momentum=0.9)
    history = []
    for step in range(STEPS):
        chosen = torch.arange(step * BATCH, (step + 1) * BATCH) % len(images)
        loss = nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    return history


values, targets = load_digits(return_X_y=True)
images = torch.tensor(values, dtype=torch.float32).view(-1, 1, 8, 8) / 16
labels = torch.tensor(targets)
curves = {norms: losses(network(norms), images, labels) for norms in ("torch", "drop-in", "fused")}

print(f"{'step':>4}", *(f"{norms:>8}" for norms in curves))
for step in (0, 1, 2, 5, 10, 20, STEPS - 1):
    print(f"{step:>4}", *(f"{curve[step]:8.4f}" for curve in curves.values()))
for norms in ("drop-in", "fused"):
    apart = max(abs(ours - theirs) for ours, theirs in zip(curves[norms], curves["torch"], strict=True))
    print(f"{norms}: the same losses as torch to 0.001: {apart < 1e-3}")
