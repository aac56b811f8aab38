"""The callback in real fits of both of Lightning's packages, on a CPU."""

from __future__ import annotations

import importlib
import logging
import warnings

import pytest
import torch
from torch import nn

from batchnorm.errors import ArgumentError
from monitoring.networks import hooks_of, images
from monitoring.test_writing import read

PACKAGES = {"lightning.pytorch": "lightning", "pytorch_lightning": "pytorch_lightning"}


@pytest.fixture(params=PACKAGES)
def parts(request):
    """The package, and the callback for it."""
    package = importlib.import_module(request.param)
    logging.getLogger(request.param).setLevel(logging.ERROR)
    own = importlib.import_module(f"batchnorm.monitoring.{PACKAGES[request.param]}")
    return package, own.BatchNormMonitor


def module(package, fails_at=None, loses_at=None):
    class Module(package.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
            self.batches = 0

        def training_step(self, batch, index):
            self.batches += 1
            if self.batches == fails_at:
                raise KeyboardInterrupt
            loss = self.net(batch).square().mean()
            if self.batches == loses_at:
                raise ValueError("its loss is NaN")
            return loss

        def validation_step(self, batch, index):
            self.net(batch)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    return Module()


def fit(package, model, callbacks, folder, logger, *, batches=4, **arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = package.Trainer(
            accelerator="cpu",
            max_epochs=1,
            callbacks=callbacks,
            logger=logger,
            default_root_dir=folder,
            enable_progress_bar=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            **arguments,
        )
        loader = torch.utils.data.DataLoader(images(8 * batches), batch_size=8)
        trainer.fit(model, loader, loader)


def test_tensorboard(parts, tmp_path):
    package, callback = parts
    model = module(package)
    before, found = hooks_of(model), []
    logger = package.loggers.TensorBoardLogger(tmp_path, name="", version="")
    fit(package, model, [callback(every=2, on_trouble=found.extend)], tmp_path, logger)
    events = read(tmp_path)
    assert [event.step for event in events.Scalars("batchnorm_smallest_variance/net.1")] == [0, 2]
    assert all(event.value > 0 for event in events.Scalars("batchnorm_gradient_output/net.1"))
    assert "batchnorm_gamma/net.1" in events.Tags()["histograms"]
    assert hooks_of(model) == before
    assert found == []


def test_other_loggers_get_the_numbers(tmp_path):
    import lightning.pytorch as package

    from batchnorm.monitoring.lightning import BatchNormMonitor

    logger = package.loggers.CSVLogger(tmp_path, name="", version="")
    fit(package, module(package), [BatchNormMonitor(every=2)], tmp_path, logger)
    header, *rows = (tmp_path / "metrics.csv").read_text().splitlines()
    place = header.split(",").index("batchnorm_smallest_variance/net.1")
    assert len([row for row in rows if row.split(",")[place]]) == 2


def test_a_step_of_several_batches_is_observed_once(tmp_path):
    import lightning.pytorch as package

    from batchnorm.monitoring.lightning import BatchNormMonitor

    logger = package.loggers.TensorBoardLogger(tmp_path, name="", version="")
    fit(package, module(package), [BatchNormMonitor(every=1)], tmp_path, logger, accumulate_grad_batches=2)
    assert [event.step for event in read(tmp_path).Scalars("batchnorm_dead/net.1")] == [0, 1]


def test_an_interrupt_leaves_nothing(tmp_path):
    import lightning.pytorch as package

    from batchnorm.monitoring.lightning import BatchNormMonitor

    model = module(package, fails_at=3)
    before = hooks_of(model)
    logger = package.loggers.CSVLogger(tmp_path, name="", version="")
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        fit(package, model, [BatchNormMonitor(every=2)], tmp_path, logger)
    assert model.batches == 3
    assert hooks_of(model) == before


def test_the_step_that_raises_is_written(parts, tmp_path):
    package, callback = parts
    model = module(package, loses_at=3)
    before = hooks_of(model)
    logger = package.loggers.TensorBoardLogger(tmp_path, name="", version="")
    with pytest.raises(ValueError, match="its loss is NaN"):
        fit(package, model, [callback(every=2)], tmp_path, logger)
    assert [event.step for event in read(tmp_path).Scalars("batchnorm_dead/net.1")] == [0, 2]
    assert hooks_of(model) == before


def test_what_means_nothing_is_refused(tmp_path):
    import lightning.pytorch as package

    from batchnorm.monitoring.lightning import BatchNormMonitor

    for every in (0, 2.5):
        with pytest.raises(ArgumentError, match=f"every={every}"):
            BatchNormMonitor(every=every)
    with pytest.raises(ArgumentError, match="no logger"):
        fit(package, module(package), [BatchNormMonitor()], tmp_path, False, batches=1)
    told = []
    model = module(package)
    model.net[1].weight.data.fill_(float("nan"))
    fit(package, model, [BatchNormMonitor(on_trouble=told.extend)], tmp_path, False, batches=1)
    assert [each.name for each in told] == ["nonfinite-parameters"]
