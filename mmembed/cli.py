"""The command line: arguments in, tables and JSON out."""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass, replace
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import mmembed
from mmembed import encryption
from mmembed.errors import MmembedError, UsageError, VersionError
from mmembed.files import Place, place

if TYPE_CHECKING:
    from mmembed.search import Searcher
    from mmembed.types import Neighbour

_EXIT_FAILED, _EXIT_USAGE, _EXIT_ERRORS, _EXIT_INTERRUPTED = 1, 2, 3, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0, 1 for a failure, 2 for a wrong call, 3 for too many records with errors, 130
    for an interruption."""
    own, beam_flags = _split(list(sys.argv[1:] if arguments is None else arguments))
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a character shows another
    logging.basicConfig(level=logging.ERROR, format="mmembed: %(message)s")  # Beam warns of what nobody here uses
    try:
        options = _parser(own).parse_args(own)
        options.beam_flags = beam_flags
        if beam_flags and "workers" not in options:
            return _fail("this command runs no pipeline: it takes no flags for Beam after `--`", _EXIT_USAGE)
        if getattr(options, "encryption_key", ""):
            encryption.use(options.encryption_key)
        code = int(options.run(options))
        sys.stdout.flush()
        return code
    except UsageError as error:
        return _fail(error, _EXIT_USAGE)
    except MmembedError as error:
        return _fail(error, _EXIT_FAILED)
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python flushes at its end goes nowhere
        return _EXIT_FAILED
    except OSError as error:  # a full disk, a folder that can't be written: the user's to mend, not ours
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else error, _EXIT_FAILED)
    except KeyboardInterrupt:
        return _fail("interrupted; what was finished is kept: run the same command again to go on", _EXIT_INTERRUPTED)


def _fail(message: object, code: int) -> int:
    print(f"mmembed: {message}", file=sys.stderr)
    return code


def _split(arguments: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """Flags of ours, and those for Beam after `--`."""
    if "--" not in arguments:
        return arguments, ()
    place = arguments.index("--")
    return arguments[:place], tuple(arguments[place + 1 :])


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line that says what is wrong; the default prints the usage before it."""
        self.exit(_EXIT_USAGE, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser(asked: Sequence[str]) -> argparse.ArgumentParser:
    """Of all commands; options of the configuration, which load numpy, only for a command that is asked for."""
    parser = _Parser(
        prog="mmembed", description="One embedding space for images, texts and sounds.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"mmembed {mmembed.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
        made.set_defaults(run=run)
        if name != "sample":
            made.add_argument(
                "--encryption-key",
                default="",
                metavar="KEY",
                help="of an encrypted data set: a file of 64 hex digits, or MODULE:CLASS of a key service (default: "
                "MMEMBED_ENCRYPTION_KEY of the environment)",
            )
        return made

    made = command("sample", _sample, "Write a sample data set.")
    made.add_argument("folder", metavar="DIR", type=Path)
    made.add_argument("--records", type=int, default=1000, metavar="N")
    made.add_argument("--seed", type=int, default=0, metavar="S")

    sections: tuple[str, ...]
    for name, sections, help in (
        (
            "build",
            ("extract", "fit", "project", "index", "evaluate"),
            "All stages: raw records to embeddings, an index and an evaluation.",
        ),
        ("extract", ("extract",), "Raw records to features."),
    ):
        made = command(name, _build if name == "build" else _extract, help)
        made.add_argument(
            "input",
            metavar="INPUT",
            help="a manifest (.jsonl, .csv, .tsv, also .gz; .parquet), WebDataset .tar files, a folder of files, a "
            "data set of Hugging Face; a path, a URL of a file system that Beam knows, or a pattern (*, **, {00..99})",
        )
        _stage_arguments(made, sections, asked)
        made.add_argument("--retry-errors", action="store_true", help="try again what is in errors/")
        made.add_argument("--overwrite", action="store_true", help="extract again what another configuration made")
        made.add_argument(
            "--dry-run", action="store_true", help="only say what would be read, and estimate size and time"
        )
    for name, sections, help in (
        ("fit", ("fit",), "Features to maps."),
        ("project", ("project",), "Features to embeddings."),
        ("index", ("index",), "Embeddings to an index."),
    ):
        made = command(name, _later_stage, help)
        made.set_defaults(stage=name)
        _stage_arguments(made, sections, asked)

    made = command("evaluate", _evaluate, "Retrieval between all modalities, on held-out records.")
    made.add_argument("root", metavar="OUT", type=place)
    _section_arguments(made, ("evaluate",), asked)

    made = command("compare", _compare, "Which of two data sets finds more, and whether that is chance.")
    made.add_argument("first", metavar="A", type=place)
    made.add_argument("second", metavar="B", type=place)
    made.add_argument("--json", action="store_true", help="one JSON object a line")

    made = command(
        "audit", _audit, "What of texts and metadata can be told from embeddings, and what noise does to it."
    )
    made.add_argument("root", metavar="OUT", type=place)
    made.add_argument(
        "--captions", type=Path, metavar="FILE", help="texts from outside, one a line (default: OUT's own)"
    )
    made.add_argument("--json", action="store_true", help="one JSON object")

    for name, run, help in (
        ("info", _info, "What a data set holds."),
        ("errors", _errors, "What could not be used, and why: counts by stage and kind, and examples."),
        ("verify", _verify, "Check every file of a data set."),
    ):
        made = command(name, run, help)
        made.add_argument("root", metavar="OUT", type=place)
        if name == "info":
            made.add_argument("--history", action="store_true", help="what each build did")

    made = command(
        "forget",
        _forget,
        "Remove records for good: from all files, from the index, and from all that was learned; later builds leave "
        "them out. Ids that the data set doesn't know are reported and change nothing (exit code 2 if it knows none).",
    )
    made.add_argument("root", metavar="OUT", type=place)
    made.add_argument(
        "--id",
        action="append",
        default=[],
        metavar="ID",
        help="as in OUT, or your own where it has pseudonyms; repeatable",
    )
    made.add_argument("--ids-file", type=Path, metavar="FILE", help="one id a line, UTF-8")
    made.add_argument("--workers", type=int, default=_cores(), help="processes (default: one a core)")
    made.add_argument("--json", action="store_true", help="the receipt as one JSON object, with all checksums")

    tools = commands.add_parser("encoders", help="Check encoders, and measure them.").add_subparsers(
        metavar="WHAT", required=True
    )
    for name, run, help in (
        ("check", _check_encoders, "Whether encoders keep what they promise: shapes, equal features in any batch, …"),
        ("bench", _bench_encoders, "Segments a second of one core, by the number that is encoded at once."),
    ):
        made = tools.add_parser(name, help=help, description=help, allow_abbrev=False)
        made.set_defaults(run=run)
        if name == "bench":
            made.add_argument("input", nargs="?", default="", metavar="INPUT", help="a data set to take segments from")
            made.add_argument("--json", action="store_true", help="one JSON object a line")
        _section_arguments(made, ("extract",), asked)

    made = command("query", _query, "Nearest neighbours of texts, pictures, sounds, records, or several together.")
    made.add_argument("root", metavar="OUT", type=place)
    made.set_defaults(clauses=[])
    for flag, metavar, kind in (
        ("text", "TEXT", str),
        ("image", "FILE", Path),
        ("audio", "FILE", Path),
        ("id", "ID", str),
    ):
        made.add_argument(f"--{flag}", metavar=metavar, type=kind, action=_Clause, help="what to ask with; repeatable")
    made.add_argument(
        "--weight",
        metavar="W",
        type=float,
        action=_Clause,
        help="of what stands before it (default: 1); below 0: not wanted",
    )
    made.add_argument("--filter", default="", metavar="SQL", help='a condition over the metadata: "year > 2019"')
    made.add_argument("--segments", default="best", metavar="WHICH", help="best of each record (default), or all")
    made.add_argument("--fold", action="store_true", help="near duplicates of a better answer are counted there")
    made.add_argument("--to", default="any", metavar="MODALITY", help="image, text, audio or any (default: any)")
    made.add_argument("-k", type=int, default=10, metavar="K", help="how many (default: 10)")
    made.add_argument("--json", action="store_true", help="one JSON object a line")
    made.add_argument("--html", metavar="FILE", type=Path, help="also a page with pictures, sounds and marked words")
    made.add_argument("--preview", action="store_true", help="pictures in the terminal, where it shows 24-bit colours")

    made = command("explain", _explain, "Which words, picture cells or stretches of time make a match.")
    made.add_argument("root", metavar="OUT", type=place)
    _query_arguments(made)
    made.add_argument("--id", metavar="ID", required=True, help="the record that is matched")
    made.add_argument("--to", default="any", metavar="MODALITY", help="which of its modalities (default: the nearest)")
    made.add_argument("--overlay", metavar="FILE.png", type=Path, help="pictures with their cells tinted")
    made.add_argument("--json", action="store_true", help="one JSON object")

    made = command("serve", _serve, "A search page, and the same as an HTTP API.")
    made.add_argument("root", metavar="OUT", type=place)
    made.add_argument("--host", default="127.0.0.1", help="to listen at (default: 127.0.0.1, this machine alone)")
    made.add_argument("--port", type=int, default=8000, help="to listen at; 0: any that is free (default: 8000)")
    made.add_argument(
        "--token",
        default=os.environ.get("MMEMBED_TOKEN", ""),
        help="what whoever asks must know (default: MMEMBED_TOKEN of the environment; else, where other machines can "
        "ask, a new one)",
    )
    made.add_argument(
        "--max-upload-mb",
        type=float,
        default=32.0,
        metavar="MB",
        help="the largest request, in 10^6 bytes (default: 32)",
    )
    return parser


def _query_arguments(parser: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    """A medium to ask with."""
    kinds = parser.add_mutually_exclusive_group(required=True)
    kinds.add_argument("--text", metavar="TEXT", help="--text=-x where it begins with a dash")
    kinds.add_argument("--image", metavar="FILE", type=Path)
    kinds.add_argument("--audio", metavar="FILE", type=Path)
    return kinds


def _stage_arguments(parser: argparse.ArgumentParser, sections: Sequence[str], asked: Sequence[str]) -> None:
    parser.add_argument("root", metavar="OUT", type=place)
    parser.add_argument("--workers", type=int, default=_cores(), help="processes (default: one a core)")
    _section_arguments(parser, sections, asked)
    parser.epilog = (
        "Flags for Beam itself follow after `--`, for instance `-- --runner=PortableRunner --job_endpoint=HOST:PORT`."
    )


def _section_arguments(parser: argparse.ArgumentParser, sections: Sequence[str], asked: Sequence[str]) -> None:
    if parser.prog.rpartition(" ")[2] not in asked:  # to know the options is to load numpy
        return
    from mmembed.config import Config

    parser.set_defaults(sections=sections)
    tables = ", ".join(f"[{section}]" for section in sections)
    parser.add_argument("--config", type=Path, metavar="FILE.toml", help=f"flags as keys of the tables {tables}")
    for section in sections:
        _field_arguments(parser.add_argument_group(section), getattr(Config(), section), section, "")


def _field_arguments(group: argparse._ArgumentGroup, config: Any, path: str, prefix: str) -> None:
    """A flag for each field of a configuration; those of a nested one begin with its name."""
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            _field_arguments(group, value, f"{path}.{item.name}", f"{item.name}-")
            continue
        flag = item.metadata.get("flag") or f"--{prefix}{item.name}".replace("_", "-")
        dest = f"{path}.{item.name}"
        help = item.metadata.get("help", "")
        if isinstance(value, bool):
            group.add_argument(flag, dest=dest, action=argparse.BooleanOptionalAction, default=MISSING, help=help)
        elif isinstance(value, tuple):
            group.add_argument(flag, dest=dest, action=_Append, default=MISSING, metavar="STR", help=help)
        else:
            kind = type(value)
            help = f"{help} (default: {value!r})".strip()
            group.add_argument(flag, dest=dest, type=kind, default=MISSING, metavar=kind.__name__.upper(), help=help)


class _Clause(argparse.Action):
    """A part of a query, in the order of the command line: its kind, its value and its weight."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        before = namespace.clauses
        if self.dest == "weight" and not math.isfinite(values):
            parser.error(f"--weight {values}: must be a finite number")
        if self.dest != "weight":
            namespace.clauses = [*before, (self.dest, values, 1.0)]
        elif before:
            namespace.clauses = [*before[:-1], (*before[-1][:2], values)]
        else:
            parser.error("--weight stands behind what it is of")


class _Append(argparse.Action):
    """A flag that may be repeated; the default of `append` would be the start of its list."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [*([] if before is MISSING else before), values])


def _config(options: argparse.Namespace, stored: dict[str, Any] | None = None) -> Any:
    """Flags over the configuration file over what the data set was built with over the defaults.

    Of a file, only the tables of this command's stages count: the others were built as the manifest says.
    """
    from mmembed.config import Config, from_file, from_json

    start = config = from_json(Config(), stored or {})
    if options.config:
        from_the_file = from_file(options.config, config)
        config = replace(config, **{section: getattr(from_the_file, section) for section in options.sections})
    given: dict[str, Any] = {}
    for path, value in vars(options).items():
        if "." in path and value is not MISSING:
            *tables, key = path.split(".")
            table = given
            for name in tables:
                table = table.setdefault(name, {})
            table[key] = value
    config = from_json(config, given)
    for key in (item.name for item in fields(config.fit) if item.name != "maps"):
        chosen = key in given.get("fit", {}) or getattr(config.fit, key) != getattr(start.fit, key)
        if chosen and config.fit.maps:
            raise UsageError(
                f"fit.{key} can't be chosen with the maps of {config.fit.maps}, which bring their own dimension and "
                "split; to fit here instead, add --maps ''"
            )
    return config


def _cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _engine(options: argparse.Namespace) -> Any:
    from mmembed.engine import Engine

    if options.beam_flags:
        from mmembed.remote import use_flags
        from mmembed.transforms import check_beam_flags, check_job_server

        check_beam_flags(options.beam_flags, [options.root, *([place(options.input)] if "input" in options else [])])
        check_job_server(options.beam_flags)
        use_flags(options.beam_flags)
    return Engine(options.workers, options.beam_flags)


def _sample(options: argparse.Namespace) -> int:
    from mmembed.sample import write_sample

    path = write_sample(options.folder, options.records, options.seed)
    print(f"{options.records:,} records: {path}")
    return 0


def _build(options: argparse.Namespace) -> int:
    from mmembed import stages
    from mmembed.report import build_summary

    engine = _engine(options)
    config = _config(options, _budget(options.root))
    if options.dry_run:
        return _dry_run(options, config)
    with _writing(options.root):
        dataset = stages.build(options.input, options.root, config, engine, _request(options))
    print(build_summary(dataset))
    return _judge_errors(dataset, config)


def _budget(root: Place) -> dict[str, Any]:
    """What was said of the indexes of a data set that is there: it holds until something else is said."""
    from mmembed.dataset import MANIFEST, Dataset, check_root

    check_root(root)
    if not (root / MANIFEST).exists():
        return {}
    try:
        stored = Dataset.open(root).config.get("index", {})
    except VersionError:  # which --overwrite starts anew, and all else refuses
        return {}
    return {"index": {key: stored[key] for key in ("recall", "memory", "latency") if key in stored}}


def _extract(options: argparse.Namespace) -> int:
    from mmembed import stages
    from mmembed.dataset import Dataset
    from mmembed.extraction import for_another_run

    engine = _engine(options)
    request = _request(options)
    if options.dry_run:
        return _dry_run(options, _config(options))
    with _writing(options.root):
        dataset = Dataset.open_or_new(options.root, request.overwrite)
        config = _config(options, for_another_run(dataset.config))
        dataset = stages.extract(options.input, dataset, config, engine, request)
    return _judge_errors(dataset, config)


def _dry_run(options: argparse.Namespace, config: Any) -> int:
    from mmembed.forecast import forecast

    print(forecast(options.input, options.root, config, options.workers))
    return 0


def _request(options: argparse.Namespace) -> Any:
    from mmembed.stages import Request

    return Request(options.retry_errors, options.overwrite)


@contextmanager
def _writing(root: Place) -> Iterator[None]:
    """The folder of a data set, made if need be, that nobody else writes into meanwhile."""
    from mmembed.dataset import locked, make_folder

    make_folder(root)
    with locked(root):
        yield


def _judge_errors(dataset: Any, config: Any) -> int:
    from mmembed.stages import error_rate

    rate, most = error_rate(dataset), config.extract.max_error_rate
    if rate <= most:
        return 0
    return _fail(
        f"{rate:.1%} of the records have errors, more than --max-error-rate {most:g}; all others are done. "
        f"See `mmembed errors {dataset.root}`, mend them, and run the same command again",
        _EXIT_ERRORS,
    )


def _later_stage(options: argparse.Namespace) -> int:
    from mmembed import stages
    from mmembed.dataset import Dataset

    engine = _engine(options)
    config = _config(options, dict(Dataset.open(options.root).config))
    with _writing(options.root):
        before = Dataset.open(options.root)
        after = getattr(stages, options.stage)(before, config, engine)
    if "evaluate" in before.stages and "evaluate" not in after.stages:
        stages.say(
            f"{options.stage}: the evaluation and report.html are removed, for they were of what was there before: "
            "run `mmembed evaluate`"
        )
    return 0


def _forget(options: argparse.Namespace) -> int:
    from mmembed import stages
    from mmembed.dataset import Dataset
    from mmembed.report import forgetting

    ids = list(dict.fromkeys([*options.id, *_ids_of(options.ids_file)]))
    if not ids:
        raise UsageError("name what is to be forgotten: --id ID, or --ids-file FILE")
    engine = _engine(options)
    Dataset.open(options.root)
    with _writing(options.root):
        receipt = stages.forget(Dataset.open(options.root), ids, engine)
    print(json.dumps(receipt, ensure_ascii=False) if options.json else forgetting(receipt), flush=True)
    if receipt["missing"]:
        return _fail(f"the records are removed, but not all could be done again: {receipt['missing']}", _EXIT_FAILED)
    return 0


def _ids_of(file: Path | None) -> list[str]:
    """The lines of a file, without blank ones."""
    try:
        text = file.read_bytes().decode("utf-8-sig") if file else ""
        return [line for line in text.replace("\r\n", "\n").split("\n") if line.strip()]
    except OSError as error:
        raise UsageError(f"can't read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is no UTF-8: {error}") from error


def _evaluate(options: argparse.Namespace) -> int:
    from mmembed import stages
    from mmembed.dataset import EVALUATION, Dataset
    from mmembed.evaluate import format_table

    config = _config(options, dict(Dataset.open(options.root).config))
    with _writing(options.root):
        dataset = stages.evaluate(Dataset.open(options.root), config)
    print(format_table(json.loads(dataset.read(EVALUATION))))
    return 0


def _compare(options: argparse.Namespace) -> int:
    from mmembed.compare import compare, format_rows
    from mmembed.dataset import Dataset

    rows = compare(Dataset.open(options.first), Dataset.open(options.second))
    print("\n".join(map(json.dumps, rows)) if options.json else format_rows(rows))
    return 0


def _audit(options: argparse.Namespace) -> int:
    from mmembed.audit import audit, format_audit
    from mmembed.dataset import Dataset
    from mmembed.engine import use_one_thread

    use_one_thread()
    result = audit(Dataset.open(options.root), options.captions)
    print(json.dumps(result, ensure_ascii=False) if options.json else format_audit(result))
    return 0


def _check_encoders(options: argparse.Namespace) -> int:
    from mmembed.bench import check
    from mmembed.engine import use_one_thread
    from mmembed.report import checked

    use_one_thread()
    results = list(check(_config(options).extract))
    print("\n".join(map(checked, results)))
    return _EXIT_FAILED if any(result.fault for result in results) else 0


def _bench_encoders(options: argparse.Namespace) -> int:
    from mmembed.bench import bench
    from mmembed.engine import use_one_thread
    from mmembed.report import throughput

    use_one_thread()
    for row in bench(options.input, _config(options).extract):
        print(json.dumps(row) if options.json else throughput(row), flush=True)
    return 0


def _errors(options: argparse.Namespace) -> int:
    from mmembed.dataset import Dataset
    from mmembed.report import errors

    print(errors(Dataset.open(options.root)))
    return 0


def _info(options: argparse.Namespace) -> int:
    from mmembed.dataset import Dataset
    from mmembed.report import history, info

    dataset = Dataset.open(options.root)
    print(history(dataset) if options.history else info(dataset))
    return 0


def _verify(options: argparse.Namespace) -> int:
    from mmembed.dataset import Dataset
    from mmembed.verify import verify

    dataset = Dataset.open(options.root)
    problems = verify(dataset)
    for problem in problems:
        print(problem)
    if problems:
        return _fail(
            f"{options.root} has {len(problems):,} problem{'s' * (len(problems) > 1)}: "
            "delete the files named above, and run its build again",
            _EXIT_FAILED,
        )
    print(f"{options.root}: all {len(dataset.files):,} files are as the manifest says")
    return 0


def _query(options: argparse.Namespace) -> int:
    from mmembed.search import Query, Searcher

    if not options.clauses:
        return _fail("a query needs --text, --image, --audio or --id", _EXIT_USAGE)
    query = sum((weight * Query.of(**{kind: value}) for kind, value, weight in options.clauses), Query(()))
    searcher = Searcher.open(options.root)
    neighbours = searcher.search(
        query, options.to, options.k, filter=options.filter, segments=options.segments, fold=options.fold
    )
    if options.html:
        folder = options.html.absolute().parent
        if options.html.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
            raise UsageError(f"--html {options.html}: must be a file in a folder that is there and can be written")
        from mmembed.pages.gallery import gallery
        from mmembed.shards import write_bytes

        write_bytes(options.html, gallery(searcher, query, neighbours).encode())
    if not neighbours and not options.json:
        print("nothing found")
        return 0
    print(_as_json(neighbours) if options.json else _as_table(neighbours, searcher.dataset.input))
    if options.preview:
        _preview(searcher, neighbours)
    return 0


def _preview(searcher: Searcher, neighbours: Sequence[Neighbour]) -> None:
    from mmembed.pages.previews import contact_sheet

    if not sys.stdout.isatty() or os.environ.get("COLORTERM") not in ("truecolor", "24bit"):
        print("mmembed: no preview: the output is no terminal, or COLORTERM is not truecolor", file=sys.stderr)
        return
    media = {f"{n.rank} {n.id}": partial(searcher.media, n.id, n.modality, n.media) for n in neighbours}
    if lines := contact_sheet(media, shutil.get_terminal_size().columns):
        print("\n".join(lines))
    else:
        print("mmembed: no preview: none of the answers is a picture that can be read", file=sys.stderr)


def _explain(options: argparse.Namespace) -> int:
    from mmembed.explain import explain, render, write_overlay
    from mmembed.search import Query, Searcher

    query = Query.of(text=options.text, image=options.image, audio=options.audio)
    found = explain(Searcher.open(options.root), query, options.id, options.to)
    if options.overlay:
        write_overlay(found, options.overlay)
    print(json.dumps(found.to_json(), ensure_ascii=False) if options.json else render(found))
    return 0


def _serve(options: argparse.Namespace) -> int:
    try:
        from mmembed.serve.server import new_token, serve
    except ModuleNotFoundError as error:
        raise UsageError(f"{error.name} is not installed: pip install 'mmembed[serve]'") from error
    from mmembed.search import Searcher
    from mmembed.serve.settings import Settings, is_loopback

    if not math.isfinite(options.max_upload_mb):
        raise UsageError(f"--max-upload-mb {options.max_upload_mb}: must be a number of megabytes")
    token = options.token or ("" if is_loopback(options.host) else new_token())
    settings = Settings(options.host, options.port, token, round(options.max_upload_mb * 10**6))
    searcher = Searcher.open(options.root)
    for modality in searcher.targets:
        searcher.index(modality)  # so that what is missing is said before anybody asks
    try:
        serve(searcher, settings)
    except KeyboardInterrupt:  # how it is ended
        print(file=sys.stderr)
    return 0


def _as_json(neighbours: Sequence[Neighbour]) -> str:
    return "\n".join(json.dumps(vars(neighbour), ensure_ascii=False) for neighbour in neighbours)


def _as_table(neighbours: Sequence[Neighbour], input: str) -> str:
    from mmembed.inputs.rows import TEXT_MODALITIES
    from mmembed.report import path_from_here, table

    rows = [
        [
            str(n.rank),
            f"{n.score:.3f}",
            n.modality,
            n.id + (f" (+{len(n.twins)})" if n.twins else ""),
            " ".join(f"{value:g}" for value in n.span),
            n.media if n.modality in TEXT_MODALITIES else path_from_here(input, n.media),
        ]
        for n in neighbours
    ]
    paths = [row for row, found in enumerate(neighbours) if found.modality not in TEXT_MODALITIES]
    return table(["rank", "score", "modality", "id", "span", "text or path"], rows, paths)
