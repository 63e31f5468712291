"""The balanced step in Hugging Face's Trainer. It ends with the parameters of plain_torch.py, bit for bit.

    python examples/hf_trainer.py          # needs transformers and accelerate
    python examples/hf_trainer.py summed

Trainer's schedule, callbacks, logs and checkpoints go on as ever. One process: for several workers, `fit` or torchrun
(docs/balanced-step.md).
"""

import tempfile
from collections.abc import Iterator

import torch
from plain_torch import EPOCHS, MOMENTUM, RATE, ROWS_A_STEP, TASK, TRAIN, batches, chosen_balancer, new_model, show
from transformers import Trainer, TrainingArguments

from equipoise.balancers import BalancedStep
from equipoise.models import Batch


class Epochs:
    """What Trainer goes through: it calls `set_epoch` before each epoch."""

    def __init__(self) -> None:
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(TRAIN) // ROWS_A_STEP)

    def __iter__(self) -> Iterator[Batch]:
        return batches(self.epoch)


class Balanced(Trainer):
    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=self.args.learning_rate, momentum=MOMENTUM)
        self.step = BalancedStep(self.model, TASK, chosen_balancer(), self.optimizer, seed=0)
        return self.optimizer

    def get_train_dataloader(self) -> Epochs:
        self.batches = Epochs()
        return self.batches

    def training_step(self, model: torch.nn.Module, inputs: Batch, num_items_in_batch: object = None) -> torch.Tensor:
        self.step.epoch = self.batches.epoch
        result = self.step(inputs)
        # Trainer will step its optimiser as well: without gradients that changes nothing.
        self.optimizer.zero_grad(set_to_none=True)
        return torch.tensor(result.loss, device=self.args.device)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=EPOCHS,
            per_device_train_batch_size=ROWS_A_STEP,
            learning_rate=RATE,
            lr_scheduler_type="constant",  # the default falls to zero
            max_grad_norm=0.0,  # clipping is the step's: clip_norm
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = Balanced(new_model(), arguments)
        trainer.train()
    model = trainer.model
    print(f"{trainer.state.global_step} steps, mean loss {trainer.state.log_history[-1]['train_loss']:.4f}")
    show(model)
