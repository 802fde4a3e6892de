"""What it costs to make media ready for an encoder, beside what a user would write instead: one process, one thread.

    python benchmarks/decode.py pictures FILE_OR_FOLDER … [--limit 500] [--rounds 5]
    python benchmarks/decode.py texts MANIFEST.jsonl
    python benchmarks/decode.py sounds MANIFEST.jsonl

The peers are opencv-python-headless, simplejpeg, torchvision, img2dataset (pictures), wordllama and scikit-learn
(texts) and librosa (sounds); what is not installed is named and left out. CPU seconds, contenders taking turns, the
best round of each.

Pictures: JPEG files (of a manifest's records, or of a folder) to a letterboxed square of 128 pixels. Quality is the
mean PSNR and SSIM against all pixels, reduced in floating point by Lanczos' filter and by the mean of an area: no way
is the best for both. `of ours` is how many media a way does while ours does one.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"
for _name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"):  # as mmembed's own workers have them
    if _name not in os.environ:
        os.environ |= {"MALLOC_TRIM_THRESHOLD_": "1000000000", "MALLOC_MMAP_THRESHOLD_": "1000000000"}
        os.execv(sys.executable, [sys.executable, *sys.argv])

import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from mmembed.errors import RecordError  # noqa: E402
from mmembed.modalities.audio import Audio  # noqa: E402
from mmembed.modalities.image import Image  # noqa: E402
from mmembed.modalities.text import Text  # noqa: E402
from mmembed.report import table  # noqa: E402
from mmembed.types import Media  # noqa: E402

SIDE = 128
RATE = 16_000

Pixels = NDArray[np.uint8]
Way = Callable[[Any], Any]


def installed(*modules: str) -> bool:
    """Whether a peer can be measured; says so where it can't."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        print(f"left out, not installed: {', '.join(missing)}", file=sys.stderr)
    return not missing


def fitted(width: int, height: int) -> tuple[int, int]:
    """The size of a picture within the square."""
    scale = SIDE / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def squared(picture: NDArray[Any]) -> NDArray[Any]:
    """A picture in the middle of a white square."""
    height, width = picture.shape[:2]
    square = np.full((SIDE, SIDE, 3), 255, picture.dtype)
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    square[top : top + height, left : left + width] = picture
    return square


def ours(path: Path) -> Pixels:
    """This project."""
    image = Image(size=SIDE)
    ((_, whole),) = image.segment(image.decode(Media(path=str(path))))
    return image.normalize(whole)


def opencv(path: Path) -> Pixels:
    """The calls of img2dataset's resizer in its mode "border", without the JPEG that it then writes."""
    import cv2

    picture = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    small = cv2.resize(picture, fitted(*picture.shape[1::-1]), interpolation=cv2.INTER_AREA)
    return squared(cv2.cvtColor(small, cv2.COLOR_BGR2RGB))


@cache
def _resizer() -> Any:
    from img2dataset.resizer import Resizer

    return Resizer(SIDE, "border", False, downscale_interpolation="area", encode_quality=95)


def img2dataset(path: Path) -> Pixels | None:
    """Its resizer as it is: it gives a JPEG."""
    _resizer()(io.BytesIO(path.read_bytes()))
    return None


def simplejpeg_way(spare: float, how: str) -> Way:
    """Decode at n/8 of the size, never below `spare` times what is needed, then resize.

    Args:
        how: "area" by OpenCV, "bicubic" by Pillow, "" not at all: the decoder's own cost.
    """

    def way(path: Path) -> Pixels | None:
        import simplejpeg

        data = path.read_bytes()
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        across, down = fitted(width, height)
        least = {"min_width": min(width, round(across * spare)), "min_height": min(height, round(down * spare))}
        picture = simplejpeg.decode_jpeg(data, "RGB", min_factor=1, **least)
        if how == "area":
            import cv2

            return squared(cv2.resize(picture, (across, down), interpolation=cv2.INTER_AREA))
        if how == "bicubic":
            from PIL import Image as pillow

            return squared(np.asarray(pillow.fromarray(picture).resize((across, down), pillow.Resampling.BICUBIC)))
        return None

    return way


def torchvision_way(how: str) -> Way:
    """All pixels, then an antialiased resize."""

    def way(path: Path) -> Pixels | None:
        import torch
        from torchvision.io import ImageReadMode, decode_jpeg, read_file
        from torchvision.transforms.v2 import functional

        torch.set_num_threads(1)
        picture = decode_jpeg(read_file(str(path)), mode=ImageReadMode.RGB)
        across, down = fitted(picture.shape[2], picture.shape[1])
        mode = functional.InterpolationMode(how)
        small = functional.resize(picture, [down, across], interpolation=mode, antialias=True)
        return squared(small.permute(1, 2, 0).numpy())

    return way


def picture_ways() -> dict[str, Way]:
    """By name."""
    ways: dict[str, Way] = {"mmembed": ours}
    if installed("cv2"):
        ways["OpenCV, as img2dataset calls it"] = opencv
    if installed("img2dataset"):
        ways["img2dataset's Resizer, to JPEG"] = img2dataset
    if installed("torchvision"):
        ways |= {f"torchvision, {how}": torchvision_way(how) for how in ("bilinear", "bicubic")}
    if installed("simplejpeg"):
        ways |= {f"simplejpeg {spare}x, bicubic": simplejpeg_way(spare, "bicubic") for spare in (1, 1.5, 2, 3)}
        if "OpenCV, as img2dataset calls it" in ways:
            ways |= {f"simplejpeg {spare}x, area": simplejpeg_way(spare, "area") for spare in (1, 1.5, 2, 3)}
        ways |= {"floor: simplejpeg 1x, no resize": simplejpeg_way(1, "")}
        ways |= {"floor: simplejpeg, all pixels": simplejpeg_way(1e9, "")}
    return ways


def reference(path: Path, how: str) -> NDArray[np.float32]:
    """All pixels, reduced in floating point, float32 (128, 128, 3)."""
    from PIL import Image as pillow

    with pillow.open(path) as file:
        bands = file.convert("RGB").split()
    size = fitted(*bands[0].size)
    small = [np.asarray(band.convert("F").resize(size, pillow.Resampling[how])) for band in bands]
    return squared(np.stack(small, axis=2)).clip(0, 255)


def psnr(got: Pixels, wanted: NDArray[np.float32]) -> float:
    """In dB; 60 at most, so that blank pictures don't decide the mean."""
    error = float(np.mean(np.square(got.astype(np.float32) - wanted)))
    return min(60.0, 10 * float(np.log10(255**2 / max(error, 1e-9))))


def ssim(got: Pixels, wanted: NDArray[np.float32]) -> float:
    """Of the mean of the channels (Wang et al., 2004, with their window and constants)."""
    from scipy.ndimage import gaussian_filter

    def blurred(values: Any) -> Any:
        return gaussian_filter(values, 1.5, truncate=3.5)

    a, b = got.mean(axis=2), wanted.mean(axis=2).astype(float)
    mean_a, mean_b = blurred(a), blurred(b)
    var_a, var_b, both = blurred(a * a) - mean_a**2, blurred(b * b) - mean_b**2, blurred(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    likeness = (2 * mean_a * mean_b + c1) * (2 * both + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return float(likeness.mean())


def best_times(ways: dict[str, Way], media: Sequence[Any], rounds: int) -> dict[str, float]:
    """CPU seconds a medium, the best of some rounds; all take turns."""
    found = dict.fromkeys(ways, float("inf"))
    for way in ways.values():
        way(media[0])
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.process_time()
            for one in media:
                way(one)
            found[name] = min(found[name], (time.process_time() - start) / len(media))
    return found


def pictures(paths: Sequence[Path], rounds: int) -> None:
    """A row for each way, and where our own time goes."""
    ways = picture_ways()
    times = best_times(ways, paths, rounds)
    wanted = {how: [reference(path, how) for path in paths] for how in ("LANCZOS", "BOX")}
    rows = []
    for name, way in ways.items():
        got = [way(path) for path in paths]
        quality = ["-"] * 3
        if got[0] is not None:
            lanczos = wanted["LANCZOS"]
            quality = [f"{np.mean([psnr(*pair) for pair in zip(got, wanted[how])]):.1f}" for how in ("LANCZOS", "BOX")]
            quality += [f"{np.mean([ssim(*pair) for pair in zip(got, lanczos)]):.4f}"]
        speed = f"{1 / times[name]:,.0f}"
        rows.append([name, speed, f"{1e3 * times[name]:.3f}", f"{times['mmembed'] / times[name]:.2f}", *quality])
    print(f"{len(paths)} pictures of {_sizes(paths)}")
    print(table(["way", "pictures/s", "ms", "of ours", "dB Lanczos", "dB area", "SSIM"], rows))
    print(table(["step of ours", "ms"], [[name, f"{1e3 * cost:.3f}"] for name, cost in steps(paths, rounds).items()]))


def steps(paths: Sequence[Path], rounds: int) -> dict[str, float]:
    """Seconds of each step of ours for a picture: each is what a longer chain takes more than a shorter one."""
    from PIL import Image as pillow

    from mmembed.encoders.image import ImageStatistics
    from mmembed.modalities import image as module

    image, encoder = Image(size=SIDE), ImageStatistics()

    def opened(path: Path) -> None:
        with path.open("rb") as file, pillow.open(file, formats=module.FORMATS):
            pass

    def drafted(path: Path) -> None:
        with path.open("rb") as file, pillow.open(file, formats=module.FORMATS) as picture:
            picture.draft(None, image._kept(*picture.size, module.DCT_SPARE))
            picture.load()

    chain: dict[str, Way] = {
        "read": lambda path: path.read_bytes(),
        "+ open (header)": opened,
        "+ decode": drafted,
        "+ colour, orientation, checks": lambda path: image.decode(Media(path=str(path))),
        "+ resize": ours,
        "+ features": lambda path: encoder.encode([ours(path)]),
    }
    times = best_times(chain, paths, rounds)
    before = [0.0, *times.values()]
    return {name: cost - earlier for (name, cost), earlier in zip(times.items(), before, strict=False)}


def _sizes(paths: Sequence[Path]) -> str:
    from PIL import Image as pillow

    sides = [max(pillow.open(path).size) for path in paths]
    return f"{min(sides):,} to {max(sides):,} pixels on the longer side, median {np.median(sides):,.0f}"


def texts(values: Sequence[str], rounds: int) -> None:
    """Texts to features: ours, and the two parts by the calls of the packages that have them."""
    from mmembed.encoders import resolve

    modality, encoder = resolve(Text(), "builtin")
    encoder.setup()
    batches = [values[start : start + 64] for start in range(0, len(values), 64)]

    def mine(batch: Sequence[str]) -> Any:
        pieces = [
            modality.normalize(piece)
            for text in batch
            for _, piece in modality.segment(modality.decode(Media(content=text)))
        ]
        return encoder.encode(pieces)

    ways: dict[str, Way] = {"mmembed": mine}
    if installed("wordllama", "sklearn"):
        ways["WordLlama.embed + HashingVectorizer(char_wb, 2 to 5)"] = text_peers()
    _print_rates(best_times(ways, batches, rounds), len(values) / len(batches), "texts/s")


def text_peers() -> Way:
    """The same two kinds of features by their packages."""
    import wordllama
    from sklearn.feature_extraction.text import HashingVectorizer

    words = wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)
    ngrams = HashingVectorizer(analyzer="char_wb", ngram_range=(2, 5), n_features=512)
    return lambda batch: np.hstack([words.embed(list(batch), norm=True), ngrams.transform(batch).toarray()])


def sounds(paths: Sequence[Path], rounds: int) -> None:
    """Sounds to features: ours, and librosa's own calls for the same descriptors, with a shared spectrum or without."""
    from mmembed.encoders.audio import AudioStatistics

    audio, encoder = Audio(), AudioStatistics()
    encoder.setup()

    def read(path: Path) -> list[Any]:
        return [audio.normalize(piece) for _, piece in audio.segment(audio.decode(Media(path=str(path))))]

    good, seconds = [], 0.0
    for path in paths:
        try:
            pieces = read(path)
        except RecordError:
            continue  # digital silence
        good.append(path)
        seconds += sum(int(np.flatnonzero(piece)[-1]) + 1 for piece in pieces) / RATE
    ways: dict[str, Way] = {"mmembed: read": read, "mmembed": lambda path: encoder.encode(read(path))}
    if installed("librosa"):
        import librosa

        ways |= {
            "librosa: load": lambda path: librosa.load(path, sr=RATE),
            "librosa, a call a descriptor": lambda path: librosa_features(librosa.load(path, sr=RATE)[0], False),
            "librosa, one spectrum for all": lambda path: librosa_features(librosa.load(path, sr=RATE)[0], True),
        }
    print(f"{len(good)} sounds, {seconds:,.0f} seconds")
    _print_rates(best_times(ways, good, rounds), seconds / len(good), "seconds of sound/s")


def librosa_features(samples: NDArray[np.float32], shared: bool) -> list[Any]:
    """The descriptors of `AudioStatistics`, as means and deviations.

    Args:
        shared: whether they are computed from one spectrum, or each by its own call as most code does.
    """
    import librosa
    from librosa import feature
    from librosa.onset import onset_detect, onset_strength

    frames = {"n_fft": 1024, "hop_length": 160}
    if shared:
        magnitude = np.abs(librosa.stft(samples, **frames))
        power = {"S": magnitude**2, "sr": RATE}
        mel = librosa.power_to_db(feature.melspectrogram(**power, n_mels=40))
        cepstra, strength = feature.mfcc(S=mel, n_mfcc=20), onset_strength(S=mel, sr=RATE)
        spectrum: dict[str, Any] = {"S": magnitude, "sr": RATE}
        flatness, chroma = feature.spectral_flatness(S=magnitude), feature.chroma_stft(**power, tuning=0.0)
    else:
        given: dict[str, Any] = {"y": samples, "sr": RATE, **frames}
        cepstra = feature.mfcc(**given, n_mfcc=20, n_mels=40)
        strength = onset_strength(y=samples, sr=RATE, hop_length=160, n_mels=40)
        spectrum = given
        flatness, chroma = feature.spectral_flatness(y=samples, **frames), feature.chroma_stft(**given, tuning=0.0)
    tracks = [
        cepstra,
        feature.delta(cepstra, mode="nearest"),
        chroma,
        feature.spectral_centroid(**spectrum),
        feature.spectral_bandwidth(**spectrum),
        feature.spectral_rolloff(**spectrum),
        flatness,
        feature.zero_crossing_rate(samples, frame_length=1024, hop_length=160),
    ]
    return [*((track.mean(axis=1), track.std(axis=1)) for track in tracks), onset_detect(
        onset_envelope=strength, sr=RATE, hop_length=160
    )]  # fmt: skip


def _print_rates(times: dict[str, float], each: float, unit: str) -> None:
    rows = [[name, f"{each / cost:,.0f}", f"{times['mmembed'] / cost:.2f}"] for name, cost in times.items()]
    print(table(["way", unit, "of ours"], rows))


def media_of(place: Path, key: str, suffixes: Sequence[str]) -> list[Any]:
    """The paths (or texts) under a key of a manifest, or the files of a folder."""
    if place.is_dir():
        return sorted(path for path in place.rglob("*") if path.is_file() and path.suffix.lower() in suffixes)
    rows = map(json.loads, place.read_text("utf-8").splitlines())
    values = [row[key] for row in rows if row.get(key)]
    return [value if isinstance(value, str) else value[0] for value in values] if key == "text" else [
        place.parent / value for value in values
    ]  # fmt: skip


def spread(values: Sequence[Any], limit: int) -> list[Any]:
    """At most so many of them, evenly."""
    return list(values[:: max(1, len(values) // limit)])[:limit]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["pictures", "texts", "sounds"])
    parser.add_argument("media", type=Path, nargs="+", help="manifests or folders; a table each")
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    for place in options.media:
        if options.what == "pictures":
            pictures(spread(media_of(place, "image", (".jpg", ".jpeg")), options.limit), options.rounds)
        elif options.what == "sounds":
            sounds(spread(media_of(place, "audio", (".ogg", ".wav", ".flac", ".mp3")), options.limit), options.rounds)
        else:
            texts(media_of(place, "text", ()), options.rounds)


if __name__ == "__main__":
    main()
