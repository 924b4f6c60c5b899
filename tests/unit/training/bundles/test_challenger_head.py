"""A challenger's head: how far it moves from the champion's, and when it does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from detection.networks.branch_configs import BackboneConfig
from training.bundles.challenger_head import HeadSamples, head_of, teach_head
from training.fit.softmax_head import SoftmaxHead

if TYPE_CHECKING:
    from pathlib import Path


def two_classes(first: float, second: float) -> SoftmaxHead:
    """A head of one class a side whose logit is first x f0 + second x f1."""
    weight = np.array([[-first, -second], [first, second]]) / 2
    return SoftmaxHead(("real",), ("generated",), weight, np.zeros(2))


CHAMPION = two_classes(1.0, 0.0)


def samples(column: int) -> HeadSamples:
    """Images whose class shows in one feature; three rows a group."""
    rng = np.random.default_rng(11)
    generated = np.arange(600) // 3 % 2 == 0
    features = rng.normal(0, 1, (600, 2)).astype(np.float32)
    features[:, column] += np.where(generated, 1.5, -1.5)
    groups = np.array([f"group-{index // 3}" for index in range(600)])
    return HeadSamples(features, generated, groups)


def test_the_head_learns_what_the_champion_did_not_look_at() -> None:
    """Where a new feature tells the classes apart, the head moves there, and the loss falls."""
    head, losses = teach_head(samples(1), CHAMPION, 0.2)
    assert head.weight[1, 1] - head.weight[0, 1] > 0.5
    assert min(losses, key=losses.__getitem__) > 0
    assert min(losses.values()) < 0.6 * losses[0]


def test_a_head_that_no_step_improves_stays_the_champions() -> None:
    """Where what is taught makes the groups held back worse, the champion's head is kept whole."""
    told = samples(0)
    held = np.isin(told.groups, told.divided(0.2)[1].groups)
    wrong = HeadSamples(told.features, np.where(held, told.generated, ~told.generated), told.groups)
    champion = two_classes(3.0, 0.0)
    head, losses = teach_head(wrong, champion, 0.2)
    assert head is champion
    assert losses[0] == min(losses.values())


def test_a_class_that_is_held_back_whole_is_taught_all_the_same() -> None:
    """With all generated images in one group that is held back, all images teach, unjudged."""
    told = samples(1)
    held = told.divided(0.2)[1].groups[0]
    head, losses = teach_head(
        HeadSamples(told.features, told.groups == held, told.groups), CHAMPION, 0.2
    )
    assert losses == {}
    assert head is not CHAMPION


def test_no_group_is_both_taught_and_held_back() -> None:
    """Rows of one group stay together, and about the share is held back."""
    taught, held = samples(0).divided(0.2)
    assert not set(taught.groups) & set(held.groups)
    assert 60 < len(held.groups) < 200


def test_samples_and_heads_come_back_from_files_and_weights(tmp_path: Path) -> None:
    """What was saved is read back, and a head's tensors name the same head."""
    stored = samples(0)
    stored.save(tmp_path / "features.safetensors")
    found = HeadSamples.load(tmp_path / "features.safetensors")
    np.testing.assert_array_equal(found.features, stored.features)
    np.testing.assert_array_equal(found.generated, stored.generated)
    np.testing.assert_array_equal(found.groups, stored.groups)
    weights = {
        "head.weight": torch.tensor([[2.0, 3.0], [4.0, 5.0]]),
        "head.bias": torch.tensor([0.5, 1.5]),
    }
    head = head_of(weights, BackboneConfig(real=("photograph",), generated=("a",)))
    assert (head.real, head.generated) == (("photograph",), ("a",))
    assert (head.weight.tolist(), head.bias.tolist()) == ([[2.0, 3.0], [4.0, 5.0]], [0.5, 1.5])
