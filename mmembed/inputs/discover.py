"""What a location given by the user means: which files, of which form, relative to which folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from itertools import takewhile

from braceexpand import braceexpand

from mmembed import files
from mmembed.errors import UsageError
from mmembed.inputs import FORMS, METADATA_FILES, form_of
from mmembed.inputs.rows import SUFFIXES

Found = tuple[str, list[tuple[str, str]]]
"""A folder, and (form, name relative to it) of each file."""

_SAVED, _SAVED_SPLITS = "state.json", "dataset_dict.json"


def discover(location: str) -> Found:
    """The files of an input and their forms.

    Raises:
        UsageError: there are none, or their form can't be told.
        ReadError: a file system can't be asked.
    """
    if not files.is_url(location):
        location = os.path.abspath(location)  # workers may have another working directory
    if "{" in location and not files.exists(location) and not files.is_folder(location):
        return _several(location, _expanded(location))
    if files.is_pattern(location):
        return _several(location, files.matching(location))
    if files.is_folder(location):
        return _folder(location)
    if not files.exists(location):
        raise UsageError(f"can't read the input {location}: there is no such file or folder")
    return _several(location, [location])


def _expanded(location: str) -> list[str]:
    """The files that braces name, of which each must be there: a missing shard is no smaller data set."""
    try:
        patterns = list(braceexpand(location))
    except ValueError as error:
        raise UsageError(f"the braces of {location} don't match: {error}") from error
    found = []
    for pattern in patterns:
        names = files.matching(pattern) if files.is_pattern(pattern) else [pattern] * files.exists(pattern)
        if not names:
            raise UsageError(f"can't read the input {pattern}: there is no such file")
        found += names
    return list(dict.fromkeys(found))


def _several(location: str, found: list[str]) -> Found:
    if not found:
        raise UsageError(f"no file is named by {location}")
    folder = files.parent(found[0]) if len(found) == 1 else _common(found)
    names = [path.removeprefix(folder).lstrip("/") for path in found]
    forms = [form_of(name) for name in names]
    for name, form in zip(names, forms):
        if form is None:
            known = ", ".join(ending for endings in FORMS.values() for ending in endings)
            raise UsageError(f"can't tell the form of {files.join(folder, name)}: a manifest's name ends in {known}")
    return folder, [(form, name) for form, name in zip(forms, names) if form]


def _common(paths: list[str]) -> str:
    """The deepest folder that holds all of several files."""
    parts = [path.split("/")[:-1] for path in paths]
    same = takewhile(lambda level: len(set(level)) == 1, zip(*parts))
    return "/".join(level[0] for level in same) or "/"


def _folder(location: str) -> Found:
    location = location.rstrip("/") or "/"
    names = list(files.below(location))
    leaves = {name.rsplit("/", 1)[-1] for name in names}
    if _SAVED_SPLITS in leaves or (_SAVED in leaves and any(name.endswith(".arrow") for name in names)):
        from mmembed.inputs.arrow import saved_files

        return location, [("arrow", name) for name in saved_files(location, names)]
    if metadata := [name for name in names if name.rsplit("/", 1)[-1] in METADATA_FILES]:
        return location, [(str(form_of(name)), name) for name in metadata]
    kinds = Counter(_kinds(names))
    manifests = [(form, name) for name in names if (form := form_of(name))]
    if kinds["media"] and manifests:
        raise UsageError(
            f"{location} holds files of media and manifests ({manifests[0][1]}, for instance): name the manifest, or a "
            "folder without any"
        )
    if kinds["media"]:
        return location, [("folder", "")]
    if len({form for form, _ in manifests}) == 1:
        return location, manifests
    if manifests:
        forms = ", ".join(sorted({form for form, _ in manifests}))
        raise UsageError(f"{location} holds files of several forms ({forms}): name those that you mean, with a pattern")
    raise UsageError(f"{location} holds neither media nor a manifest: name a folder with files that mmembed reads")


def _kinds(names: list[str]) -> Iterator[str]:
    endings = tuple(f".{ending}" for several in SUFFIXES.values() for ending in several)
    for name in names:
        yield "media" if name.lower().endswith(endings) else "manifest" if form_of(name) else "other"
