"""What training code imports: samples of a built data set, shuffled, split over ranks and workers, taken up anywhere.

    from mmembed.reader import open_dataset

    ds = open_dataset("OUT", ("image", "text"), shuffle=True, batch_size=256)
    for batch in ds:
        batch["image.embedding"], batch["text.embedding"]  # float32 (256, dim) each

Plain numpy; `mmembed.reader.torch`, `.jax` and `.tensorflow` give tensors of theirs.
"""

from mmembed.reader.opening import open_dataset
from mmembed.reader.reader import Reader

__all__ = ["Reader", "open_dataset"]
