"""The order of samples is a function of seed and step, whatever the number of processes."""

import numpy as np
import pytest

from moai.training.batch_order import BatchOrder

LENGTHS = np.random.default_rng(0).integers(10, 400, 103).tolist()


def build(**options) -> BatchOrder:
    return BatchOrder(LENGTHS, **{"batch_size": 8, "micro_batch_size": 2, "seed": 3} | options)


@pytest.mark.parametrize("is_length_grouped", [True, False])
def test_epoch_holds_each_sample_once_when_drawn(is_length_grouped: bool) -> None:
    order = build(is_length_grouped=is_length_grouped)
    epochs = []
    for epoch in range(3):
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        seen = [index for step in steps for index in order.batch(step).tolist()]
        assert len(seen) == len(set(seen)) == order.steps_per_epoch * 8 == 96
        epochs.append(seen)
    assert epochs[0] != epochs[1] and set(epochs[0]) != set(epochs[1])  # others are left over


def test_order_depends_on_seed_alone_when_drawn_again() -> None:
    one, again, other = build(), build(), build(seed=4)
    steps = [20, 3, 40]
    assert all((one.batch(step) == again.batch(step)).all() for step in reversed(steps))
    assert any((one.batch(step) != other.batch(step)).any() for step in steps)


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_micro_batches_are_the_same_when_more_processes_share_them(num_ranks: int) -> None:
    order = build()
    for step in (0, 5, 30):
        ranks = [order.micro_batches(step, rank, num_ranks) for rank in range(num_ranks)]
        interleaved = [ranks[i % num_ranks][i // num_ranks] for i in range(order.num_micro_batches)]
        assert interleaved == order.micro_batches(step)
        assert sorted(sum(interleaved, [])) == sorted(order.batch(step).tolist())


def test_padding_shrinks_when_lengths_are_grouped() -> None:
    lengths = np.array(LENGTHS)

    def padded(order: BatchOrder) -> int:
        chunks = [chunk for step in range(order.steps_per_epoch) for chunk in order.micro_batches(step)]
        return sum(lengths[chunk].max() * len(chunk) for chunk in chunks)

    grouped, random = (padded(build(is_length_grouped=choice)) for choice in (True, False))
    assert grouped < 0.85 * random


def test_order_is_refused_when_batches_cannot_be_formed() -> None:
    with pytest.raises(ValueError, match=r"at least `optimization\.batch_size` = 104 samples, got 103"):
        build(batch_size=104)


def test_samples_of_an_image_stay_together_when_they_are_to_share_it() -> None:
    about = np.random.default_rng(1).integers(0, 12, 103)
    order = build(image_indices=about, samples_per_image=2, micro_batch_size=4)
    epochs = [np.concatenate([order.batch(step) for step in range(start, start + 12)]) for start in (0, 12)]
    for seen in epochs:
        assert len(set(seen.tolist())) == 96
        pairs = about[seen].reshape(-1, 2)
        alike = (pairs[:, 0] == pairs[:, 1]).sum()
        assert alike >= len(pairs) - 12  # at most one sample of each image finds no partner
    assert epochs[0].tolist() != epochs[1].tolist()
    for chunk in order.micro_batches(5):  # neighbours, so that an image is read once
        assert len(chunk) == 4 and chunk == order.batch(5).reshape(-1, 4)[order.micro_batches(5).index(chunk)].tolist()


def test_sharing_is_refused_when_micro_batches_cut_it_or_images_are_unknown() -> None:
    with pytest.raises(ValueError, match="micro_batch_size` to be a multiple of `samples_per_image`, got 2 and 3"):
        build(image_indices=[0] * 103, samples_per_image=3)
    with pytest.raises(ValueError, match="needs a dataset whose `image_indices`"):
        build(samples_per_image=2)
