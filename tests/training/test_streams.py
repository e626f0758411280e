# SPDX-License-Identifier: MIT
"""What a stream of training data is given, and what its loader is given by the arguments."""

from types import SimpleNamespace

import pytest
from datasets import Dataset

from hf_internimage.image_files import BadImageError
from hf_internimage.training.streams import TrainingStream


class Numbers:
    """Gives a row's number with the number of the pass; rows of `bad` cannot be used."""

    def __init__(self, bad=()):
        self.bad = bad

    def one(self, row, number):
        if row["row"] in self.bad:
            raise BadImageError(f"{row['row']}.png:  cannot\nbe read")
        return row["row"], number


def stream(rows=8, shards=4, bad=(), **options):
    data = Dataset.from_dict({"row": list(range(rows))}).to_iterable_dataset(num_shards=shards)
    return TrainingStream(data, Numbers(bad), options.pop("seed", 3), **options)


def passes(of, rows, count):
    """Return the rows of the first passes, and check that each example has the number of its pass."""
    examples = iter(of)
    result = []
    for number in range(count):
        part = [next(examples) for _ in range(rows)]
        assert {example[1] for example in part} == {number}
        result.append([example[0] for example in part])
    return result


def test_each_pass_has_another_order_that_the_seed_decides():
    first, second = passes(stream(), 8, 2)
    assert sorted(first) == sorted(second) == list(range(8))
    assert first != second
    assert passes(stream(), 8, 2) == [first, second]
    assert passes(stream(seed=4), 8, 1) == [second]  # the seed of a pass is that of the stream and its number


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more than the machine has processors
@pytest.mark.parametrize(("workers", "used"), [(0, 0), (3, 3), (9, 4)])
def test_a_loader_is_as_the_arguments_say(workers, used):
    arguments = SimpleNamespace(
        dataloader_num_workers=workers, dataloader_pin_memory=False, dataloader_prefetch_factor=5
    )
    of = stream()
    loader = of.loader(arguments, 3, list)
    assert loader.dataset is of
    assert (loader.batch_size, loader.collate_fn, loader.num_workers) == (3, list, used)
    assert (loader.pin_memory, loader.prefetch_factor) == (False, 5 if used else None)
    arguments.dataloader_pin_memory = True
    assert of.loader(arguments, 3, list).pin_memory


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_too_few_shards_are_told_once_and_shared(rank, caplog, monkeypatch):
    kinds = type(Dataset.from_dict({"row": [0]}).to_iterable_dataset())
    monkeypatch.delattr(kinds, "reshard", raising=False)
    of = stream(rows=9, shards=2, rank=rank, world_size=3)
    assert of.shared
    told = "have 2 shards for 3 processes: each process reads all of them and uses its part"
    assert (told in caplog.text) is (rank == 0)
    assert len(passes(of, 3, 1)[0]) == 3
    caplog.clear()
    assert not stream(shards=3, rank=rank, world_size=3).shared
    assert not caplog.text


def test_processes_have_shards_of_their_own():
    rows = [passes(stream(rank=rank, world_size=2), 4, 1)[0] for rank in (0, 1)]
    assert sorted(rows[0] + rows[1]) == list(range(8))
    assert [stream(rank=rank, world_size=2).num_shards for rank in (0, 1)] == [2, 2]
    assert stream().num_shards == 4


def test_bad_images_are_listed_in_the_first_pass(tmp_path, caplog):
    file = tmp_path / "bad_images.txt"
    file.write_text("earlier\n")
    assert len(passes(stream(bad=(2, 5), bad_images_file=file), 6, 3)) == 3
    first, *lines = file.read_text().splitlines()
    assert (first, sorted(lines)) == ("earlier", [f"train: {row}.png: cannot be read" for row in (2, 5)])
    assert caplog.text.count("Left out of the training data: ") == 2
    with pytest.raises(BadImageError, match=r"2\.png"):
        passes(stream(bad=(2,)), 8, 1)


def test_a_stream_without_a_usable_image_ends(tmp_path):
    with pytest.raises(ValueError, match=r"^None of the 8 images of the training data that a worker reads can be used"):
        next(iter(stream(bad=range(8), bad_images_file=tmp_path / "bad_images.txt")))
