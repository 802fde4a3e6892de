"""The stages and `build`: plan what is missing, run its pipeline, commit the manifest.

Nothing here loads Beam before a stage really has something to do.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial, wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ParamSpec

from mmembed import encryption
from mmembed.card import dataset_card
from mmembed.config import Config, ExtractConfig, FitConfig, from_json, to_json, with_absolute_paths
from mmembed.dataset import CARD, EVALUATED, EVALUATION, REPORT, Dataset, File, Stage, describe, is_own, relative
from mmembed.engine import Engine
from mmembed.errors import CrashError, MmembedError, UsageError
from mmembed.extraction import ENCODERS, Extraction, refuse_other_configuration, summary_of
from mmembed.features import unit_files
from mmembed.files import Place, is_url, listed, place
from mmembed.progress import Counts, Progress
from mmembed.project import GROUPS, load_groups
from mmembed.report import decisions, drift_line, failures, ignored, index_line
from mmembed.secret import Secret
from mmembed.shards import (
    fingerprint,
    is_sealed,
    read_bytes,
    remove_folder,
    remove_temporaries,
    several,
    shard_path,
    write_bytes,
    write_json,
)
from mmembed.splits import Groups, twins
from mmembed.types import Unit

if TYPE_CHECKING:
    import apache_beam as beam

    from mmembed.indexing import Indexing
    from mmembed.project import ProjectUnit

P = ParamSpec("P")

_MAX_BLOCKS, _BLOCK_UNITS = 8, 32  # of the fit: each block holds its own moments until all are merged
_UNITS_A_PROCESS = 32  # starting a process costs as much as projecting so many units
_BASE_RAM = 1 << 30  # of a worker with all that it imports, and some files of a unit
_EXTRACT_RAM = 2 << 30  # also the largest picture that is decoded, or a unit with media in its rows, and encoders
_INDEX_VALUES_A_PROCESS = 1 << 24  # and as indexing so many float32


def say(line: str) -> None:
    """One line of what is going on, for a person, on standard error."""
    print(line, file=sys.stderr, flush=True)


def _encrypted(stage: Callable[P, Dataset]) -> Callable[P, Dataset]:
    """A stage that encrypts what it writes, where its configuration says so."""

    @wraps(stage)
    def run(*arguments: P.args, **named: P.kwargs) -> Dataset:
        config = next(value for value in (*arguments, *named.values()) if isinstance(value, Config))
        with encryption.sealing(config.extract.encrypt):
            return stage(*arguments, **named)

    return run


@dataclass(frozen=True)
class Request:
    """How a run treats what is there already.

    Attributes:
        retry_errors: try records with errors once more, though nothing of them has changed.
        overwrite: extract again what another configuration, or version, extracted.
    """

    retry_errors: bool = False
    overwrite: bool = False


def build(input: str, root: Place, config: Config, engine: Engine, request: Request = Request()) -> Dataset:
    """All stages in a row; each is skipped where nothing that goes into it has changed."""
    from mmembed.evaluate import check_label_column

    config = with_maps(with_absolute_paths(config), root)
    if config.project.noise:
        Secret(config.extract.secret).read()  # before anything is done
    dataset = extract(input, Dataset.open_or_new(root, request.overwrite), config, engine, request)
    check_label_column(dataset, config.evaluate.label_column)
    dataset = fit(dataset, config, engine)
    dataset = project(dataset, config, engine)
    dataset = index(dataset, config, engine)
    return evaluate(dataset, config)


@_encrypted
def extract(input: str, dataset: Dataset, config: Config, engine: Engine, request: Request = Request()) -> Dataset:
    """Raw records to features/, records/, errors/ and dropped/.

    Only units that are missing are done, and those whose records or media have changed; of these, features that still
    fit are taken over.

    Raises:
        UsageError: there is no such input, it holds no records, or the data set has another configuration.
        CrashError: a worker process was killed from outside, or workers die whatever they do.
    """
    config = with_absolute_paths(config)
    dataset, _ = _purged(dataset)
    extraction = Extraction.of(input, dataset.root, config.extract, dataset.forgotten)
    if not request.overwrite:
        refuse_other_configuration(dataset, extraction)
    location = input if is_url(input) else str(Path(input).absolute())
    stale = extraction.stale(request.retry_errors)
    if not stale and dataset.is_done("extract", extraction.mark):
        extraction.scratch.remove()  # of a run that was killed right after its commit
        say(f"extract: up to date ({dataset.stages['extract'].summary['records']:,} records)")
        encoders = {key: getattr(config.extract, key) for key in ENCODERS}
        return dataset.moved(location, {**dataset.config["extract"], **encoders})

    if "extract" in dataset.stages:  # else what an attempt that was killed has kept there is needed
        extraction.scratch.remove()
    before, dataset = dataset, dataset.begin("extract")
    if len(stale) < len(extraction.units):
        done = len(extraction.units) - len(stale)
        say(f"extract: {done:,} of {len(extraction.units):,} units are there, going on with the others")
    while True:
        extraction.retire(stale)
        _extract_units(extraction, stale, engine)
        if not (stale := extraction.settle_duplicates()):
            break

    receipts = {
        unit.number: _expect(receipt, f"unit {unit.number}")
        for unit, receipt in zip(extraction.units, extraction.receipts(extraction.units))
    }
    files = {path: rows for number, found in receipts.items() for path, rows in unit_files(number, found).items()}
    summary = summary_of(list(receipts.values()), extraction.spaces) | extraction.changes()
    summary["ignored"] = extraction.source.ignored()
    did = extract_line(summary)
    folders = ("features", "records", "errors", "dropped")
    known = {
        path: File(about[0], about[1], files[path])
        for receipt in receipts.values()
        for path, about in receipt["written"].items()
    }
    dataset = _commit(dataset, config, "extract", extraction.mark, files, summary, folders, did, known, input=location)
    dataset = dataset.with_later_of(before)
    remove_temporaries(dataset.root / "stamps")
    extraction.scratch.remove()
    say(did)
    for line in [*ignored(dataset), *failures(dataset)]:
        say(f"extract: {line}")
    return dataset


def _extract_units(extraction: Extraction, todo: Sequence[Unit], engine: Engine) -> None:
    """Do units, past what workers die of."""
    with TemporaryDirectory(prefix="mmembed-notes-") as notes:
        here = Path(notes) if engine.is_here else None
        _extract_noted(replace(extraction, scratch=replace(extraction.scratch, notes=here)), todo, engine)


def _extract_noted(extraction: Extraction, todo: Sequence[Unit], engine: Engine) -> None:
    marks = {extraction.marks.of(unit) for unit in extraction.units}
    extraction, in_a_row = replace(extraction, scratch=extraction.scratch.with_crashes(marks)), 0
    while missing := extraction.missing(todo):
        from mmembed.transforms import ExtractFeatures, prepare

        pieces = extraction.scratch.pieces()
        prepare(engine)
        extraction.scratch.prepare(extraction.modalities)
        transform = ExtractFeatures(
            extraction.source,
            extraction.modalities,
            extraction.encoders,
            extraction.scratch,
            extraction.marks,
            extraction.config.fetcher,
            extraction.sign,
            extraction.config.batches,
        )
        watched = {unit.number: partial(_receipt_counts, extraction, unit) for unit in missing}
        try:
            with Progress("extract", watched, sum(unit.records for unit in missing), "records"):
                # All workers, also for one unit: it may hold a medium that is cut in pieces.
                isolated = replace(engine, isolated=True)
                _run("ExtractFeatures", missing, transform, isolated, engine.workers, _EXTRACT_RAM)
            if extraction.scratch.pieces() == pieces:  # else some units waited for those that are there now
                break
        except CrashError as error:
            went_on = len(extraction.missing(missing)) < len(missing) or extraction.scratch.pieces() > pieces
            in_a_row = 1 if went_on else in_a_row + 1
            extraction = extraction.after_crash(error, in_a_row)
            say(f"extract: {error}; going on without what it was working on")
    if extraction.scratch.pieces() and (waiting := extraction.missing(missing)):
        files = ", ".join(sorted({extraction.source.choice.privacy.shown(unit.file) for unit in waiting})[:3])
        raise MmembedError(f"{len(waiting)} units of {files} are not done, though their pipeline ended well: run again")


def with_maps(config: Config, root: Place) -> Config:
    """With the maps of another data set, its dimension and its split count: what is held out was held out there.

    Raises:
        UsageError: there are no such maps, or they are those of `root` itself, which fitting is to make.
    """
    if not config.fit.maps:
        return config
    maps = place(config.fit.maps).resolve()
    if maps == root.resolve():
        raise UsageError(f"maps = {config.fit.maps!r}: must be another data set than the one that is built")
    other = Dataset.open(maps)
    fitted = from_json(Config(), dict(other.config)).fit
    dim = other.stage("fit").summary["output"]["dim"]
    taken = FitConfig(
        dim=dim,
        holdout=fitted.holdout,
        group_column=fitted.group_column,
        group_media=fitted.group_media,
        maps=str(maps),
    )
    return replace(config, fit=taken)


@_encrypted
def fit(dataset: Dataset, config: Config, engine: Engine) -> Dataset:
    """Features to maps/, or the maps of another data set (`config.fit.maps`).

    Raises:
        UsageError: no two modalities ever come together in a record that is not held out.
        SpaceError: the maps of the other data set are for other features.
    """
    dataset, _ = _purged(dataset)
    config = with_maps(config, dataset.root)
    if config.fit.maps:
        return _take_maps(dataset, config, Dataset.open(place(config.fit.maps)))
    from mmembed.fit import (
        MOMENTS,
        VERSION,
        AccumulateBlock,
        ReadMoments,
        WriteMaps,
        common_dim,
        fit_bytes,
        sample_share,
    )

    spaces = dataset.modalities("extract")
    inputs = _checksums(dataset, "features", "records")
    _check_columns(dataset, config.fit)
    segments = dataset.stage("extract").summary["segments"]
    if config.fit.fit == "identity":
        dim = common_dim({name: space for name, space in spaces.items() if segments[name]})
        if 0 < config.fit.dim < dim:
            raise UsageError(f"dim = {config.fit.dim}: fit = 'identity' keeps all {dim} dimensions of the features")
    mark = fingerprint(VERSION, inputs, to_json(config.fit))
    if dataset.is_done("fit", mark):
        say("fit: up to date")
        return dataset
    dataset = dataset.begin("fit")
    from mmembed.transforms import FitMaps

    numbers = _numbers(dataset)
    size = max(_BLOCK_UNITS, -(-len(numbers) // _MAX_BLOCKS))
    starts = range(0, len(numbers), size)
    blocks = [(block, tuple(numbers[start : start + size])) for block, start in enumerate(starts)]
    groups = _groups(dataset, config.fit)
    share = sample_share(dataset.stage("extract").summary["records"], [space.dim for space in spaces.values()])
    transform = FitMaps(
        AccumulateBlock(dataset, tuple(spaces), config.fit, groups, share),
        ReadMoments(dataset.root),
        WriteMaps(dataset.root, spaces, config.fit, mark),
    )
    try:
        _run("FitMaps", blocks, transform, engine, ram=fit_bytes([space.dim for space in spaces.values()]))
    finally:
        remove_folder(dataset.root / MOMENTS)
    write_json(dataset.root / GROUPS, asdict(groups))

    report = json.loads(bytes(read_bytes(dataset.root / "maps" / "fit.json")))
    files = dict.fromkeys([*(f"maps/{name}.safetensors" for name in report["modalities"]), "maps/fit.json", GROUPS])
    summary = {
        "spaces": {name: asdict(spaces[name]) for name in report["modalities"]},
        "output": report["output"],
        "spectrum": report["spectrum"],
        "pairs": report["pairs"],
    }
    did = (
        f"fit: {', '.join(report['modalities'])} into {report['output']['dim']} dimensions by {report['method']}, "
        f"pairs {_pairs(report)}"
    )
    dataset = _commit(dataset, config, "fit", mark, files, summary, ("maps",), did)
    say(did)
    for line in decisions(report):
        say(f"fit: {line}")
    return dataset


@_encrypted
def project(dataset: Dataset, config: Config, engine: Engine) -> Dataset:
    """Features to embeddings/."""
    from mmembed.project import VERSION, ProjectUnit, load_maps

    maps = load_maps(dataset)
    kinds = dataset.stage("extract").summary["kinds"]
    groups = load_groups(dataset)
    split = (config.fit.holdout, dataset.files[GROUPS].sha256)
    noise = _noise(dataset, config)
    marks = {
        name: fingerprint(
            VERSION, dataset.files[f"maps/{name}.safetensors"].sha256, to_json(config.project), split, kinds, noise
        )
        for name in maps
    }
    mark = fingerprint(_checksums(dataset, "features", "records"), marks)
    if dataset.is_done("project", mark):
        say("project: up to date")
        return dataset
    dataset = dataset.begin("project")
    unit = ProjectUnit(
        dataset, maps, marks, kinds, config.project, groups, config.fit.holdout, Secret(config.extract.secret)
    )
    numbers = _numbers(dataset)
    done = several(lambda number: all(unit.rows(name, number) is not None for name in maps), numbers, dataset.root)
    todo = [number for number, is_done in zip(numbers, done) if not is_done]
    if todo:
        from mmembed.transforms import ProjectFeatures

        watched = {number: partial(_rows_counts, unit, number) for number in todo}
        total = sum(dataset.files[shard_path(f"features/{name}", n)].rows or 0 for name in maps for n in todo)
        processes = replace(engine, workers=min(engine.workers, -(-len(todo) // _UNITS_A_PROCESS)))
        with Progress("project", watched, total, "segments"):
            _run("ProjectFeatures", todo, ProjectFeatures(unit), processes)

    wanted = [(name, number) for name in maps for number in numbers]
    files = {
        shard_path(f"embeddings/{name}", number): _expect(rows, f"{name} of unit {number}")
        for (name, number), rows in zip(wanted, several(lambda which: unit.rows(*which), wanted, dataset.root))
    }
    summary = {
        "spaces": {name: asdict(linear_map.output) for name, linear_map in maps.items()},
        "segments": {name: sum(files[shard_path(f"embeddings/{name}", n)] for n in numbers) for name in maps},
        "dtype": config.project.dtype,
        "kinds": kinds,
    }
    did = f"project: {_counts(summary['segments'])} segments embedded"
    dataset = _commit(dataset, config, "project", mark, files, summary, ("embeddings",), did)
    say(did)
    return dataset


@_encrypted
def index(dataset: Dataset, config: Config, engine: Engine) -> Dataset:
    """Embeddings to index/.

    Raises:
        UsageError: no index can be had within the budget.
    """
    from mmembed.index import ENTRIES, VERSION
    from mmembed.indexing import PARTS, Indexing

    names = list(dataset.modalities("project"))
    mark = fingerprint(VERSION, _checksums(dataset, "embeddings"), to_json(config.index))
    if dataset.is_done("index", mark):
        remove_folder(dataset.root / PARTS)  # of a run with another budget that was killed
        say("index: up to date")
        return dataset
    work = Indexing(dataset, config.index)
    _ = work.budgets  # which refuses what can't be met, before anything is done
    try:
        _build_index(work, names, engine)
    except UsageError:  # a budget that trials showed to be out of reach: what was there stays
        remove_folder(dataset.root / PARTS)
        raise
    entries = {name: work.entry(name) for name in names}
    for name in [name for name, entry in entries.items() if entry["drift"]]:
        say(f"index: {drift_line(name, entries[name])}")
        try:
            _build_index(replace(work, retrain=(name,)), [name], engine)
            entries[name] = work.entry(name) | {"drift": entries[name]["drift"]}
        except UsageError as error:  # what it had learned finds less than it did, but more than nothing
            say(f"index: {name} was not trained again: {error}")
    dataset = dataset.begin("index")
    for name in names:
        work.publish(name)
    write_json(dataset.root / ENTRIES, entries)
    files: dict[str, int | None] = {ENTRIES: None}
    for name, entry in entries.items():
        files |= work.files(entry, name)
    rows = {name: entry["rows"] for name, entry in entries.items()}
    did = f"index: {_counts(rows)} rows"
    dataset = _commit(dataset, config, "index", mark, files, {"rows": rows}, ("index",), did)
    remove_folder(dataset.root / PARTS)
    say(did)
    for name, entry in entries.items():
        if entry["rows"]:
            say(f"index: {index_line(name, entry)}")
    return dataset


def _build_index(work: Indexing, names: Sequence[str], engine: Engine) -> None:
    from mmembed.transforms import BuildIndex

    values = sum(work.made[name]["rows"] * work.made[name]["space"]["dim"] for name in names)
    blocks = sum(-(-work.made[name]["rows"] // work.block_rows) for name in names)
    pieces = 1 if values < _INDEX_VALUES_A_PROCESS else blocks
    largest = max(work.made[name]["rows"] * work.made[name]["space"]["dim"] for name in names)
    _run("BuildIndex", names, BuildIndex(work), engine, pieces, _BASE_RAM + 8 * largest)  # rows, and an index of them


@_encrypted
def evaluate(dataset: Dataset, config: Config) -> Dataset:
    """Embeddings of held-out records to evaluation.json, the dataset card README.md and the page report.html."""
    from mmembed.evaluate import VERSION, check_label_column, format_table
    from mmembed.evaluate import evaluate as measure

    inputs = _checksums(dataset, "records", "features", "errors", "dropped", "maps", "embeddings", "index")
    mark = fingerprint(VERSION, inputs, to_json(config.evaluate))
    if dataset.is_done("evaluate", mark):
        say("evaluate: up to date")
        return dataset
    check_label_column(dataset, config.evaluate.label_column)  # before what is there is removed
    dataset = dataset.begin("evaluate")
    result = measure(dataset, config.evaluate.label_column)
    write_json(dataset.root / EVALUATION, result)
    write_bytes(dataset.root / CARD, dataset_card(dataset, format_table(result)).encode(), plain=True)
    from mmembed.pages.report_page import report_page

    files = [name for name in EVALUATED if name != REPORT or not config.extract.encrypt]
    if REPORT in files:
        write_bytes(dataset.root / REPORT, report_page(dataset, result).encode())
    else:
        say(f"evaluate: no {REPORT}, whose texts and pictures a browser shows only unencrypted: ask `mmembed serve`")
    did = f"evaluate: {len(result['rows'])} pairs of modalities"
    return _commit(dataset, config, "evaluate", mark, dict.fromkeys(files), {}, EVALUATED, did)


def forget(dataset: Dataset, ids: Sequence[str], engine: Engine) -> dict[str, Any]:
    """Remove records for good: their rows first, then all that was learned from them is learned again from what is
    left, with the data set's own configuration. A build leaves them out from now on. Gives the receipt, see
    `mmembed.forget.receipt_of`.

    Raises:
        UsageError: the data set knows none of them.
    """
    from mmembed.forget import known, receipt_of

    config = from_json(Config(), dict(dataset.config)).extract
    names = {id: Secret(config.secret).pseudonym(id) if _is_hidden(id, config) else id for id in ids}
    before, found = dataset, known(dataset, names.values())
    outcomes = {
        id: "removed"
        if name in found or before.forgotten.is_pending(name)
        else ("forgotten before" if name in before.forgotten else "not found")
        for id, name in names.items()
    }
    if all(outcome == "not found" for outcome in outcomes.values()):
        raise UsageError(f"{dataset.root} has no record of the id {ids[0]!r}{', nor of the others' * (len(ids) > 1)}")
    if found:
        dataset = dataset.forgetting(found)
    with encryption.sealing(config.encrypt):
        dataset, rows = _purged(dataset)
    missing = ""
    try:
        dataset = _again(dataset, engine)
    except MmembedError as error:
        dataset = Dataset.open(dataset.root)
        missing = str(error)
    return receipt_of(before, dataset, outcomes, rows, missing)


def _is_hidden(id: str, config: ExtractConfig) -> bool:
    """Whether an id is one of the user's own, for which a pseudonym stands in the data set."""
    return config.pseudonymize_ids and not re.fullmatch("[0-9a-f]{64}", id)


def _purged(dataset: Dataset) -> tuple[Dataset, Counter[str]]:
    """A data set without rows that are to be forgotten; most have none."""
    if not dataset.forgotten.pending:
        return dataset, Counter()
    from mmembed.forget import purge

    dataset, rows = purge(dataset)
    say(f"forget: {dataset.history[-1]['did']} removed")
    return dataset, rows


def _again(dataset: Dataset, engine: Engine) -> Dataset:
    """The stages once more that have learned from what is forgotten."""
    config = from_json(Config(), dict(dataset.config))
    problem = ""
    for name in dataset.forgotten.again:
        if name in dataset.stages and dataset.stages[name].fingerprint:
            continue
        if name == "extract":
            try:
                dataset = _copies_back(dataset, config, engine)
            except (MmembedError, OSError) as error:  # without them all else can be done
                problem = f"records that were copies of what is forgotten are still left out: {error}"
        elif name == "evaluate":
            dataset = evaluate(dataset, config)
        else:
            dataset = {"fit": fit, "project": project, "index": index}[name](dataset, config, engine)
    if problem:
        raise UsageError(problem)
    if dataset.forgotten.again:
        dataset = replace(dataset, forgotten=replace(dataset.forgotten, again=()))
        dataset.save()
    return dataset


def _copies_back(dataset: Dataset, config: Config, engine: Engine) -> Dataset:
    """The data set with records that are copies no longer, for whose sake it must be read from the input again."""
    if "extract" in dataset.stages:  # else it is under way
        extraction = Extraction.of(dataset.input, dataset.root, config.extract, dataset.forgotten)
        if extraction.stale(False) or extraction.surplus:
            raise UsageError(f"{dataset.input} has changed: run `mmembed build` to bring them back")
    return extract(dataset.input, dataset, config, engine)


def _run(
    stage: str,
    elements: Sequence[Any],
    transform: beam.PTransform,
    engine: Engine,
    pieces: int | None = None,
    ram: int = _BASE_RAM,
) -> None:
    """Run a stage's pipeline.

    Args:
        pieces: as of `transforms.run`.
        ram: bytes of memory that a worker needs, a hint for runners that choose machines.
    """
    from mmembed.transforms import run

    if not engine.is_here:  # where a hint would only make the local runner start workers of another kind
        transform = transform.with_resource_hints(min_ram=f"{ram}B")
    run(stage, list(elements), transform, engine, pieces)


def _commit(
    dataset: Dataset,
    config: Config | None,
    stage: str,
    mark: str,
    files: Mapping[str, int | None],
    summary: Mapping[str, Any],
    folders: Sequence[str],
    did: str,
    known: Mapping[str, File] | None = None,
    **changes: Any,
) -> Dataset:
    """Remove what the stage left before and no longer means, then name its files in the manifest.

    Args:
        known: files as their writers saw them, which need not be read again.
    """
    for folder in folders:
        _keep(dataset, folder, files)
    remove_temporaries(dataset.root)
    if encryption.seals():
        known = {}  # of two attempts at a file, each had a key of its own
        _check_sealed(dataset.root, [path for path in files if path != CARD])
    known = known or {}
    described = several(lambda path: known.get(path) or describe(dataset.root, path, files[path]), files, dataset.root)
    value = Stage(mark, {"folders": list(folders), **summary})
    if config is not None:
        # A budget that the indexes will be refused must not be that of the next run.
        before = {} if stage in ("index", "evaluate") else {"index": dataset.config.get("index", {})}
        changes["config"] = to_json(config) | before
    return dataset.commit(stage, value, dict(zip(files, described)), did.partition(": ")[2], **changes)


def _check_sealed(root: Place, paths: Sequence[str]) -> None:
    plain = [path for path, sealed in zip(paths, several(lambda p: is_sealed(root / p), paths, root)) if not sealed]
    for path in plain:
        (root / path).unlink()
    if plain:
        raise MmembedError(
            f"{len(plain)} files, such as {plain[0]}, were not encrypted, and are removed: this is a fault of mmembed"
        )


def _keep(dataset: Dataset, folder: str, files: Collection[str]) -> None:
    """Remove files of ours below a folder, but for some."""
    for path in listed(dataset.root / folder):
        if is_own(dataset.root, path) and relative(dataset.root, path) not in files:
            path.unlink()


def _take_maps(dataset: Dataset, config: Config, other: Dataset) -> Dataset:
    """The maps of another data set, byte for byte: vectors of both then live in one space."""
    theirs, ours = other.modalities("fit"), dataset.modalities("extract")
    names = [name for name in theirs if name in ours]
    files = [*(f"maps/{name}.safetensors" for name in names), "maps/fit.json", GROUPS]
    if not set(files) <= other.files.keys():
        raise UsageError(f"{other.root} was fitted by an earlier version: run `mmembed fit {other.root}` first")
    mark = fingerprint("maps of another data set", {path: other.files[path].sha256 for path in files})
    if dataset.is_done("fit", mark):
        say("fit: up to date")
        return dataset
    for name in names:
        theirs[name].check(ours[name], f"{dataset.root}/features/{name}")
    dataset = dataset.begin("fit")
    for path in files:
        write_bytes(dataset.root / path, other.read(path))
    if dataset.forgotten:  # which the other one may know
        groups = load_groups(other).without(dataset.forgotten, config.fit.holdout)
        write_json(dataset.root / GROUPS, asdict(groups))
    summary = {**other.stage("fit").summary, "spaces": {name: asdict(ours[name]) for name in names}}
    did = f"fit: took the maps, the dimension and the split of {other.root} for {', '.join(names)}"
    dataset = _commit(dataset, config, "fit", mark, dict.fromkeys(files), summary, ("maps",), did)
    say(did)
    if missing := [name for name in ours if name not in names and dataset.stage("extract").summary["segments"][name]]:
        say(f"fit: it has no map for {', '.join(missing)}, which get no embeddings")
    return dataset


def _check_columns(dataset: Dataset, config: FitConfig) -> None:
    """Raise UsageError for a key that no record has: near twins would silently end up on both sides of the split, and
    weights would change nothing."""
    summary = dataset.stage("extract").summary
    known = list(dict.fromkeys(["id", *summary["columns"], *summary["kinds"]]))
    for what, key in (("group column", config.group_column), *(("weight", key) for key, _ in config.weights)):
        if key and key not in known:
            raise UsageError(f"no record has the {what} {key!r}; their keys are {', '.join(known)}")


def _groups(dataset: Dataset, config: FitConfig) -> Groups:
    """Which records stay on one side of the split: those of equal group, and those that share a medium."""
    plain = Groups(config.group_column)
    if not config.group_media:
        return plain
    linked, cut = twins(_media_of_groups(dataset, plain))
    if cut:
        say(
            f"fit: {cut:,} groups of records share media in chains too long to stay on one side; only the closest do: "
            "name a --group-column if that is not enough"
        )
    return replace(plain, twins=linked)


def _media_of_groups(dataset: Dataset, groups: Groups) -> Iterator[tuple[str, str]]:
    for _, table in dataset.tables("records"):
        records = table["record"].to_pylist() if groups.column else ["{}"] * table.num_rows
        for id, record, media in zip(table["id"].to_pylist(), records, table["media"].to_pylist(), strict=True):
            group = groups.of(id, json.loads(record))
            for medium in media:
                yield group, f"{medium['modality']}:{medium['content_hash']}"


def extract_line(summary: Mapping[str, Any]) -> str:
    """What extraction did, in one line."""
    media = ", ".join(
        f"{name} {summary['used'][name]:,} of {summary['media'][name]:,} ({summary['segments'][name]:,} segments)"
        for name in summary["spaces"]
    )
    return (
        f"extract: {summary['records']:,} of {summary['rows']:,} records ({summary['added']:,} added, "
        f"{summary['changed']:,} changed, {summary['removed']:,} removed); {media}; "
        f"{summary['dropped']:,} rows in dropped/, {summary['errors']:,} rows in errors/"
    )


def error_rate(dataset: Dataset) -> float:
    """The share of the input's records that have at least one row in errors/."""
    summary = dataset.stage("extract").summary
    return float(summary["failed_records"] / summary["rows"]) if summary["rows"] else 0.0


def _receipt_counts(extraction: Extraction, unit: Unit) -> Counts | None:
    receipt = extraction.receipt(unit)
    if receipt is None:
        return None
    return {"records": unit.records, "segments": sum(receipt["segments"].values()), "errors": receipt["errors"]}


def _rows_counts(unit: ProjectUnit, number: int) -> Counts | None:
    rows = [unit.rows(name, number) for name in unit.maps]
    return None if None in rows else {"segments": sum(row or 0 for row in rows)}


def _expect(value: Any, what: str) -> Any:
    if value is None:
        raise MmembedError(f"{what} is missing although its pipeline ended well: run the same command again")
    return value


def _numbers(dataset: Dataset) -> list[int]:
    """The numbers of the units, from the files of records/."""
    return list(range(len(dataset.below("records"))))


def _noise(dataset: Dataset, config: Config) -> str:
    """What the noise of embeddings is made from, by its name; "" where they have none.

    Raises:
        UsageError: there is no secret, or embeddings aren't normalized.
    """
    if not config.project.noise:
        return ""
    if dataset.stage("fit").summary.get("spectrum") is not None:
        raise UsageError("noise needs embeddings of length 1: fit = 'pmi' gives others")
    return Secret(config.extract.secret).name


def _checksums(dataset: Dataset, *folders: str) -> dict[str, str]:
    return {path: file.sha256 for folder in folders for path, file in dataset.below(folder).items()}


def _counts(values: Mapping[str, int]) -> str:
    return ", ".join(f"{value:,} {name}" for name, value in values.items())


def _pairs(report: Mapping[str, Any]) -> str:
    return ", ".join(f"{pair} {count:,}" for pair, count in report["pairs"].items())
