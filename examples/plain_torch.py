"""The balanced step in a plain torch loop: no Ray, no run folder, one process.

    python examples/plain_torch.py          # balancer ogm
    python examples/plain_torch.py summed   # any other that `equipoise list balancers` shows

scikit-learn's digits, each image cut in two: the left five columns and the right three. lightning.py and hf_trainer.py
train the same model on the same batches and end with the same parameters.
"""

import sys
from collections.abc import Iterator

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from equipoise import balancers, valuation
from equipoise.models import MLP, Batch, Classification, LateFusion

EPOCHS, ROWS_A_STEP, RATE, MOMENTUM = 15, 64, 0.01, 0.9
DIGITS = load_digits()
TRAIN, TEST = map(torch.tensor, train_test_split(range(len(DIGITS.target)), test_size=0.3, random_state=0))
TASK = Classification(10)


def digits(ids: torch.Tensor) -> Batch:
    """The images with these numbers, as a batch of two modalities that every row has."""
    images = DIGITS.images[ids]
    return Batch(
        sample_id=ids,
        copy=torch.zeros(len(ids), dtype=torch.int16),  # 0: the original, not a resampled copy of it
        inputs={
            "left": torch.tensor(images[:, :, :5], dtype=torch.float32),
            "right": torch.tensor(images[:, :, 5:], dtype=torch.float32),
        },
        present=torch.ones(len(ids), 2, dtype=torch.bool),
        target=torch.tensor(DIGITS.target[ids]),
    )


def batches(epoch: int) -> Iterator[Batch]:
    """The train images in an order that depends on the epoch alone."""
    order = torch.randperm(len(TRAIN), generator=torch.Generator().manual_seed(epoch))
    return map(digits, TRAIN[order].split(ROWS_A_STEP))


def new_model() -> LateFusion:
    torch.manual_seed(0)
    return LateFusion({"left": MLP((8, 5)), "right": MLP((8, 3))}, num_classes=10)


def chosen_balancer() -> balancers.Balancer:
    return balancers.get(sys.argv[1] if len(sys.argv) > 1 else "ogm")


def show(model: LateFusion) -> None:
    """Every coalition of modalities of every held-out image in one pass, and what follows from that table."""
    batch = digits(TEST)
    score = valuation.sweep(model, batch, TASK)  # bool [540, 3]: right with left, with right, with both
    contributions = valuation.shapley(score, batch["present"])  # float64 [540, 2]
    copies = valuation.copies(contributions, batch["present"])  # uint8 [540, 2], what resampling would add
    print(f"\naccuracy on {len(TEST)} held-out images")
    for coalition, right in enumerate(score.float().mean(dim=0).tolist(), start=1):
        print(f"  {valuation.coalition_name(coalition, model.modalities):<12} {right:.3f}")
    print("mean contribution, and unimodal copies that sample resampling would make")
    for m, name in enumerate(model.modalities):
        print(f"  {name:<12} {contributions[:, m].mean():.3f}  {copies[:, m].sum()}")


if __name__ == "__main__":
    model = new_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)
    step = balancers.BalancedStep(model, TASK, chosen_balancer(), optimizer, seed=0)
    for epoch in range(EPOCHS):
        step.epoch = epoch  # random choices about a row depend on it
        for batch in batches(epoch):
            result = step(batch)
        if epoch % 5 == 4:
            said = ", ".join(f"{name} {value:.3f}" for name, value in result.statistics.items())
            print(f"epoch {epoch}: loss {result.loss:.4f}  {said}")
    show(model)
