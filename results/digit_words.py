"""Scikit-learn's digits as sequences of words, shared by the studies."""

import torch
from sklearn.datasets import load_digits
from torch.utils.data import StackDataset, Subset

WORDS, LABELS = 65, 10
TRAINING = 1437  # of 1797


def digits() -> tuple[Subset[StackDataset], Subset[StackDataset]]:
    """Training and test examples of 16 words each: the sums of all patches of 2 x 2 pixels, 0 to 64."""
    images, labels = load_digits(return_X_y=True)
    patches = torch.tensor(images).reshape(-1, 4, 2, 4, 2).sum((2, 4)).long().flatten(1)
    examples = StackDataset(input_ids=patches, labels=torch.tensor(labels))
    return Subset(examples, range(TRAINING)), Subset(examples, range(TRAINING, len(examples)))
