"""The balanced step in Lightning, with manual optimisation. It ends with the parameters of plain_torch.py, bit for bit.

    python examples/lightning.py          # needs pytorch-lightning
    python examples/lightning.py summed

Lightning moves, logs, saves and stops; the step does what is between two batches. One device: for several, `fit` or
torchrun (docs/balanced-step.md), because the step wraps the model for DDP itself, and so would Lightning.
"""

from collections.abc import Iterator

import pytorch_lightning as lightning
import torch
from plain_torch import EPOCHS, MOMENTUM, RATE, TASK, batches, chosen_balancer, new_model, show

from equipoise.balancers import BalancedStep
from equipoise.models import Batch


class Epoch:
    """One epoch of batches for Lightning, which wants something that has a length or can be gone through."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __iter__(self) -> Iterator[Batch]:
        return batches(self.number)


class Balanced(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False  # no backward, step, zero_grad or clipping by Lightning
        self.model = new_model()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.model.parameters(), lr=RATE, momentum=MOMENTUM)

    def on_train_start(self) -> None:
        # Lightning's face of the optimiser, so that `global_step` (max_steps, checkpoints, loggers) counts.
        self.step = BalancedStep(self.model, TASK, chosen_balancer(), self.optimizers(), seed=0)

    def train_dataloader(self) -> Epoch:
        return Epoch(self.current_epoch)  # asked for anew each epoch, see below

    def on_train_epoch_start(self) -> None:
        self.step.epoch = self.current_epoch

    def training_step(self, batch: Batch, number: int) -> None:
        result = self.step(batch)
        self.log("loss", result.loss, batch_size=len(batch["target"]))
        self.log_dict(
            {name: float(value) for name, value in result.statistics.items()}, batch_size=len(batch["target"])
        )


if __name__ == "__main__":
    trainer = lightning.Trainer(
        max_epochs=EPOCHS,
        reload_dataloaders_every_n_epochs=1,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = Balanced()
    trainer.fit(module)
    model = module.model
    print(f"{trainer.global_step} steps, loss {trainer.callback_metrics['loss']:.4f}")
    show(model)
