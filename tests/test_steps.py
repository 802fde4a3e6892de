from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from mmembed.encoders.input import Input
from mmembed.errors import DecodeError, EncodeError
from mmembed.steps import BATCH_BYTES, BATCH_SEGMENTS, Known, encode_segments, normalize_segments, segment_records
from mmembed.types import Batch, Failure, Media, Record, Segment, Space, Span

Array = NDArray[np.float32]
cut: list[weakref.ref[Array]] = []
"""All pieces that were ever cut, while they live."""


@dataclass(frozen=True)
class Counter:
    """A stub: the text "3" is cut into 0, 1, 2; "3!" breaks off after them; "x" can't be decoded."""

    name: ClassVar[str] = "text"
    version: ClassVar[str] = "1"
    size: int = 1

    @property
    def by_content(self) -> bool:
        return True

    def decode(self, media: Media) -> str:
        if media.content == "x":
            raise DecodeError("x can't be decoded")
        return str(media.content)

    def segment(self, decoded: str, metadata: Mapping[str, Any]) -> Iterator[tuple[Span, Any]]:
        for number in range(int(decoded.removesuffix("!"))):
            piece = np.full(self.size, number, np.float32)
            cut.append(weakref.ref(piece))
            yield (number, number + 1), piece
        if decoded.endswith("!"):
            raise DecodeError("broken off")

    def parts(self, content: Any) -> list[Span]:
        return [(0.0, float(len(content)))]

    def masked(self, content: Any, spans: Sequence[Span]) -> Any:
        return content[:0] if spans else content

    def normalize(self, piece: Array) -> Array:
        if piece[0] == 13:
            raise DecodeError("13 brings bad luck")
        return -piece


class Shouter(Counter):
    """The same for another modality."""

    name: ClassVar[str] = "audio"
    version: ClassVar[str] = "1"


@dataclass
class Encoder:
    """A stub: x to (x, 1); refuses a batch that holds `refused`; gives NaN for `nan`."""

    modality: str = "text"
    refused: float | None = None
    nan: float | None = None
    sizes: list[int] = field(default_factory=list)

    @property
    def space(self) -> Space:
        return Space("stub", "1", 2)

    @property
    def input(self) -> Input:
        return Input()

    def setup(self) -> None: ...

    def encode(self, batch: Sequence[Array]) -> Array:
        self.sizes.append(len(batch))
        values = np.array([item[0] for item in batch], np.float32)
        if self.refused in values:
            raise EncodeError(f"{self.refused} is refused")
        features = np.stack([values, np.ones_like(values)], axis=1)
        features[values == self.nan] = np.nan
        return features


def records(*texts: str) -> Batch:
    return Batch(
        tuple(
            Record(f"r{number}", {"text": (Media(content=text),)}, source=f"in:{number}")
            for number, text in enumerate(texts)
        )
    )


def segmented(*texts: str) -> list[Batch]:
    return list(segment_records(records(*texts), {"text": Counter()}))


def numbered(*values: float) -> Batch:
    return Batch(
        tuple(
            Segment("r", number, (float(number),), "m", "h", np.array([value], np.float32), source="in:1")
            for number, value in enumerate(values)
        ),
        "text",
    )


def test_segments_keep_the_order_of_records_and_media_and_the_records_come_last() -> None:
    *batches, last = segmented("2", "0", "3")
    assert last == records("2", "0", "3")
    [batch] = batches
    assert [(s.id, s.number, s.span, float(s.data[0])) for s in batch.items] == [
        (id, number, (number, number + 1), number)
        for id, number in [("r0", 0), ("r0", 1), ("r2", 0), ("r2", 1), ("r2", 2)]
    ]
    assert batch.items[0].content_hash == Media(content="2").content_hash
    assert {s.source for s in batch.items} == {"in:0", "in:2"}


def test_modalities_come_one_after_the_other() -> None:
    parts: dict[str, Any] = {"text": Counter(), "audio": Shouter()}
    both = Batch(tuple(Record(f"r{n}", {name: (Media(content="2"),) for name in parts}) for n in range(2)))
    assert [(batch.modality, len(batch.items)) for batch in segment_records(both, parts)] == [
        ("text", 4),
        ("audio", 4),
        ("", 2),
    ]


def test_batches_are_full_but_the_last() -> None:
    sizes = [len(batch.items) for batch in segmented("100", "50", "1")[:-1]]
    assert sizes == [BATCH_SEGMENTS, BATCH_SEGMENTS, 151 - 2 * BATCH_SEGMENTS]


def test_a_batch_ends_when_it_holds_enough_bytes() -> None:
    quarter = BATCH_BYTES // 4 // np.dtype(np.float32).itemsize
    batches = segment_records(records("9"), {"text": Counter(size=quarter)})
    assert [len(batch.items) for batch in batches if batch.modality] == [4, 4, 1]


def test_no_more_than_a_batch_is_ever_held() -> None:
    most = 0
    gc.freeze()  # what was there before, which takes long to look through, and is not what is counted
    for batch in segment_records(records("1000"), {"text": Counter()}):
        most = max(most, sum(piece() is not None for piece in cut))
        del batch
        gc.collect()
    gc.unfreeze()
    assert 0 < most <= BATCH_SEGMENTS + 1  # the piece that the loop's variable still names


def test_what_cannot_be_decoded_is_a_failure_and_other_records_and_modalities_stay() -> None:
    parts: dict[str, Any] = {"text": Counter(), "audio": Shouter()}
    spoilt = Record("spoilt", {"text": (Media(content="x"),), "audio": (Media(content="1"),)}, source="in:7")
    text, audio, last = segment_records(Batch((spoilt, *records("1").items)), parts)
    assert [segment.id for segment in text.items] == ["r0"]
    assert text.failures == (Failure("spoilt", "text", None, "segment", "DecodeError", "x can't be decoded", "in:7"),)
    assert [segment.id for segment in audio.items] == ["spoilt"] and not audio.failures
    assert len(last.items) == 2


def test_a_medium_that_breaks_off_keeps_what_came_before_and_the_failure_says_where() -> None:
    [batch, _] = segmented("3!", "1")
    assert [(segment.id, segment.number) for segment in batch.items] == [("r0", 0), ("r0", 1), ("r0", 2), ("r1", 0)]
    assert batch.failures == (Failure("r0", "text", 3, "segment", "DecodeError", "broken off", "in:0"),)


def test_failures_arrive_without_any_segment() -> None:
    [batch, _] = segmented("x", "x")
    assert not batch.items
    assert [failure.id for failure in batch.failures] == ["r0", "r1"]


def test_a_missing_file_is_a_failure() -> None:
    missing = Record("r", {"text": (Media("missing.txt", folder="/nowhere"),)})
    [batch, _] = segment_records(Batch((missing,)), {"text": Counter()})
    assert (batch.failures[0].error, batch.failures[0].stage) == ("ReadError", "segment")


def test_an_error_that_is_no_records_own_stops_the_run() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        segmented("no number")


def test_normalizing_changes_data_alone_and_names_what_it_refuses() -> None:
    earlier = Failure("r9", "text", None, "segment", "DecodeError", "earlier", "")
    batch = normalize_segments(replace(numbered(1, 13, 2), failures=(earlier,)), {"text": Counter()})
    assert [(segment.number, float(segment.data[0])) for segment in batch.items] == [(0, -1), (2, -2)]
    assert batch.failures == (
        earlier,
        Failure("r", "text", 1, "normalize", "DecodeError", "13 brings bad luck", "in:1"),
    )


def test_encoding_gives_each_segment_its_own_feature_in_one_call() -> None:
    encoder = Encoder()
    batch = encode_segments(numbered(1, 2, 3), {"text": encoder})
    assert [segment.data.tolist() for segment in batch.items] == [[1, 1], [2, 1], [3, 1]]
    assert encoder.sizes == [3]


def test_a_feature_that_is_not_finite_is_a_failure_of_its_segment_alone() -> None:
    batch = encode_segments(numbered(1, 2, 3), {"text": Encoder(nan=2)})
    assert [segment.number for segment in batch.items] == [0, 2]
    [failure] = batch.failures
    assert (failure.segment, failure.stage, failure.error) == (1, "encode", "EncodeError")
    assert "stub@1[2] gave a feature that is not finite" in failure.message


def test_a_segment_that_the_encoder_refuses_is_a_failure_and_the_others_stay() -> None:
    encoder = Encoder(refused=2)
    batch = encode_segments(numbered(1, 2, 3), {"text": encoder})
    assert [segment.data.tolist() for segment in batch.items] == [[1, 1], [3, 1]]
    assert batch.failures == (Failure("r", "text", 1, "encode", "EncodeError", "2 is refused", "in:1"),)
    assert encoder.sizes == [3, 1, 1, 1]


def copies(*values: float, hash: str = "h") -> Batch:
    """Records that all have the same medium: a segment a value, at the place of that value."""
    return Batch(
        tuple(
            Segment(f"r{n}", 0, (value,), "m", hash, np.array([value], np.float32), source=f"in:{n}")
            for n, value in enumerate(values)
        ),
        "text",
    )


def test_a_segment_that_was_seen_in_the_unit_is_encoded_once() -> None:
    encoder, known = Encoder(), Known()
    first = encode_segments(copies(1, 2, 1, 1), {"text": encoder}, known=known)
    second = encode_segments(copies(2, 3), {"text": encoder}, known=known)
    assert [segment.data.tolist() for segment in first.items] == [[1, 1], [2, 1], [1, 1], [1, 1]]
    assert [(segment.id, segment.data.tolist()) for segment in second.items] == [("r0", [2, 1]), ("r1", [3, 1])]
    assert encoder.sizes == [2, 1]
    encode_segments(copies(1, hash="another medium"), {"text": encoder}, known=known)
    encode_segments(copies(1), {"text": encoder}, known=Known())  # of another unit
    assert encoder.sizes == [2, 1, 1, 1]


def test_what_is_refused_is_a_failure_of_each_record_that_has_it() -> None:
    known = Known()
    batch = encode_segments(copies(1, 2, 2), {"text": Encoder(refused=2)}, known=known)
    assert [segment.id for segment in batch.items] == ["r0"]
    assert [(failure.id, failure.source, failure.message) for failure in batch.failures] == [
        ("r1", "in:1", "2 is refused"),
        ("r2", "in:2", "2 is refused"),
    ]
    again = encode_segments(copies(2), {"text": Encoder(refused=2)}, known=known)
    assert len(again.failures) == 1 and len(known) == 1


def test_batches_are_as_large_as_the_configuration_says() -> None:
    batches = list(segment_records(records("5"), {"text": Counter()}, sizes={"text": 2}))
    assert [len(batch.items) for batch in batches[:-1]] == [2, 2, 1]


@pytest.mark.parametrize(
    "change", [lambda x: x[:, :1], lambda x: x[:-1], lambda x: x.ravel(), lambda x: x.astype(np.float64)]
)
def test_an_encoder_that_breaks_its_promise_stops_the_run(change: Any) -> None:
    class Broken(Encoder):
        def encode(self, batch: Sequence[Array]) -> Array:
            return change(super().encode(batch))  # type: ignore[no-any-return]

    with pytest.raises(ValueError, match=r"the encoder stub@1\[2\] gave .* it must give float32 \(2, 2\)"):
        encode_segments(numbered(1, 2), {"text": Broken()})


def test_records_and_empty_batches_pass_through_without_the_encoder() -> None:
    empty = Batch((), "text", (Failure("r", "text", None, "segment", "DecodeError", "x", ""),))
    for batch in (records("1"), empty):
        assert normalize_segments(batch, {"text": Counter()}) == batch
        assert encode_segments(batch, {}) == batch
