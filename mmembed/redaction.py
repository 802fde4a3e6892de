"""What is private in a text, found and replaced: addresses, numbers, keys and, with a language model, names.

Presidio's recognizers find what has a form or a check digit, python-stdnum checks the numbers of countries that
presidio lacks, phonenumbers finds phone numbers, and spaCy finds names where one of its English models is installed.
Nothing is ever downloaded. Presidio's recognizers are asked one by one, without its engine, which sees the words around
a number through the lemmas of a language model, and no number next to an underscore, as file names have it.

What a plain number is only the words around it tell, so most numbers count only near such a word (`context`).
"""

from __future__ import annotations

import hashlib
import hmac
import importlib
import importlib.metadata
import importlib.util
import ipaddress
import logging
import re
import sys
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

from mmembed.errors import UsageError
from mmembed.secret import Secret

VERSION = 1
"""Of this module: it changes with what is found or how it is replaced."""

HOW = ("none", "tags", "pseudonyms")
"""none: texts stay as they are; tags: <EMAIL>; pseudonyms: <EMAIL_3f9a0c12d4e5>, the same for the same value."""

TYPES = (
    "EMAIL",
    "PHONE",
    "CARD",
    "IBAN",
    "IP",
    "URL_CREDENTIALS",
    "NATIONAL_ID",
    "PASSPORT",
    "DRIVER_LICENSE",
    "KEY",
    "CRYPTO",
    "NAME",
)
"""What is found; NAME only where a model of spaCy is installed."""

PACKAGES = ("presidio_analyzer", "phonenumbers", "stdnum")
"""Modules of the extra "privacy"."""

_TAG = re.compile(rf"<(?:{'|'.join(TYPES)})(?:_[0-9a-f]{{12}})?>")
_FILLER = "\ufffc"  # stands for what is replaced already: no pattern takes it
_CHUNK = 100_000  # characters that a language model reads at once; its memory grows with them


@dataclass(frozen=True)
class Redactor:
    """Replaces what is private in texts; picklable, its recognizers are made once a process, at the first text.

    Attributes:
        how: "tags" or "pseudonyms".
        secret: what pseudonyms are made with; read for them only.
    """

    how: str
    secret: Secret = Secret()

    def __post_init__(self) -> None:
        if self.how not in HOW[1:]:
            raise UsageError(f"redact = {self.how!r}: must be {' or '.join(HOW[1:])}")

    @property
    def version(self) -> str:
        """Of all that decides what is found: another version, another text."""
        packages = ["presidio_analyzer", "phonenumbers", "python-stdnum", "tldextract"]
        model = _model()
        versions = [f"{name}={_installed(name)}" for name in (*packages, *([model] if model else []))]
        return " ".join([f"redaction={VERSION}", *versions])

    def check(self) -> None:
        """Raises UsageError where a package is missing."""
        missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            raise UsageError(f"--redact needs {', '.join(missing)}: pip install 'mmembed[privacy]'")

    def redact(self, texts: Sequence[str]) -> list[tuple[str, dict[str, int]]]:
        """Each text with its private values replaced, and how many of which type; the result's own are none."""
        key = self.secret.key("redaction") if self.how == "pseudonyms" else b""
        return [self._redacted(text, key) for text in texts]

    def _redacted(self, text: str, key: bytes) -> tuple[str, dict[str, int]]:
        counts: Counter[str] = Counter()
        # Until nothing is found: what was hidden by an overlap, or joined to a neighbour, is seen the next time.
        while found := find(text):
            counts.update(one.type for one in found)
            parts, end = [], 0
            for one in found:
                parts += [text[end : one.start], _tag(one, key)]
                end = one.end
            text = "".join([*parts, text[end:]])
        return text, {type: counts[type] for type in TYPES if counts[type]}


def _tag(found: Found, key: bytes) -> str:
    if not key:
        return f"<{found.type}>"
    message = f"{found.type}\0{found.value}".encode("utf-8", "surrogatepass")
    return f"<{found.type}_{hmac.new(key, message, hashlib.sha256).hexdigest()[:12]}>"


@dataclass(frozen=True)
class Found:
    """A private value.

    Attributes:
        start, end: where it is, in characters.
        type: one of TYPES.
        value: in the one form that all its spellings have.
        score: how sure it is, 0 to 1.
    """

    start: int
    end: int
    type: str
    value: str
    score: float


_Finder: TypeAlias = Callable[[str], Iterator[Found]]


def find(text: str, prefilter: bool = True) -> list[Found]:
    """What is private in a text, by place, none overlapping another; tags of an earlier run are passed over.

    Args:
        text: any string.
        prefilter: skip at once a text that has nothing which any value has; the result is the same.
    """
    plain = _TAG.sub(lambda tag: _FILLER * len(tag[0]), text)
    plain = _ESCAPE.sub("||", plain)  # line ends as logs and JSON write them: no part of the word behind them
    if not plain.isascii():
        plain = plain.translate(_ascii())
    if prefilter and not _NEEDED.search(plain) and not _model():
        return []
    # The underscores of file names end a number, but belong to an address or a key.
    numbers = plain.replace("_", "|")
    found = [one for finder in _finders() for one in finder(plain)]
    found += [one for finder in _number_finders() for one in finder(numbers)]
    return _best(found)


_ESCAPE = re.compile(r"\\[nrt]")
_NEEDED = re.compile(r"[\d@=:]|-----BEGIN")


def _best(found: list[Found]) -> list[Found]:
    """Of those that overlap the surest, then the longest."""
    taken: list[Found] = []
    for group in _overlapping(sorted(found, key=lambda one: one.start)):
        kept: list[Found] = []
        for one in sorted(group, key=lambda one: (-one.score, one.start - one.end, one.start, TYPES.index(one.type))):
            if all(one.end <= other.start or other.end <= one.start for other in kept):
                kept.append(one)
        taken += sorted(kept, key=lambda one: one.start)
    return taken


def _overlapping(ordered: list[Found]) -> Iterator[list[Found]]:
    """Groups of those that overlap one another, of some that are ordered by their start."""
    group: list[Found] = []
    for one in ordered:
        if group and one.start >= max(other.end for other in group):
            yield group
            group = []
        group.append(one)
    if group:
        yield group


@cache
def _ascii() -> dict[int, str]:
    """Digits of all scripts, full-width letters, and typographic blanks and dashes: one character for one."""
    table = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
    table |= dict.fromkeys(range(0x2010, 0x2016), "-") | {0x2212: "-"}
    for code in range(0x80, sys.maxunicode + 1):
        category = unicodedata.category(chr(code))
        if category == "Nd":
            table[code] = str(unicodedata.decimal(chr(code)))
        elif category == "Zs":
            table[code] = " "
    return table


# Words around a value

_BEFORE, _AFTER = 50, 25  # characters


def _words(words: Sequence[str]) -> re.Pattern[str]:
    """Any of these words: the short ones as they are, longer ones as the beginning of a word too (Telefonnummer)."""
    each = (re.escape(word.lower()) + (r"(?![^\W_])" if len(word) < 5 else "") for word in words)
    return re.compile(rf"(?<![^\W\d_])(?:{'|'.join(each)})".replace(r"\ ", "[ |-]?"))


def _near(words: re.Pattern[str], text: str, start: int, end: int) -> bool:
    """Whether one of the words stands before a value, or shortly after it on its line."""
    before = text[max(0, start - _BEFORE) : start]
    after = text[end : end + _AFTER].split("\n", 1)[0]
    return words.search(before.lower()) is not None or words.search(after.lower()) is not None


def _whole(text: str, start: int, end: int) -> bool:
    """Whether a value is not a part of a longer word or number."""
    before, after = text[max(0, start - 2) : start], text[end : end + 2]
    inside = before[-1:].isalnum() or after[:1].isalnum()
    return not inside and not re.fullmatch(r"\d[.,]", before) and not re.fullmatch(r"[.,]\d", after)


def _canonical(value: str) -> str:
    return re.sub(r"[\W_]", "", value).upper()


# Addresses and keys

_LOCAL = re.compile(r"[\w.!#$%&'*+=?^`{}~-]+\Z")  # no /, which may be a letter there: in names it is a folder
_DOMAIN = re.compile(r"@([^\W_]+(?:-+[^\W_]+)*(?:\.[^\W_]+(?:-+[^\W_]+)*)+)")


def _emails(text: str) -> Iterator[Found]:
    """Presidio's own recognizer asks the network for the list of public suffixes, and takes `_2.jpg` for a domain."""
    last = 0
    for domain in _DOMAIN.finditer(text):
        at = domain.start()
        local = _LOCAL.search(text[max(last, at - 64) : at])
        labels = domain[1].split(".")
        while len(labels) > 1 and not _is_domain(".".join(labels)):  # a.b@example.com-2.jpg
            head, hyphen, _ = labels.pop().rpartition("-")
            labels += [head.rstrip("-")] if hyphen else []
        if local is None or len(labels) < 2:
            continue
        name = local[0].lstrip(".!#$%&'*/=?^`{|}~-")
        if name:
            last = at + 1 + len(".".join(labels))
            yield Found(at - len(name), last, "EMAIL", f"{name}@{'.'.join(labels)}".lower(), 0.9)


def _is_domain(name: str) -> bool:
    try:
        return bool(_suffixes()(name).suffix) and bool(_suffixes()(name).domain)
    except (UnicodeError, ValueError):
        return False


@cache
def _suffixes() -> Any:
    import tldextract

    return tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)  # the list in its package, no network


# Documented by those who give the keys out.
_TOKEN = re.compile(
    r"""(?<![A-Za-z0-9])(?:
        (?:AKIA|ASIA)[A-Z0-9]{16}                                     # Amazon
      | gh[pousr]_[A-Za-z0-9]{36,255} | github_pat_\w{22,255}         # GitHub
      | gl(?:pat|dt|rt|ptt)-[\w-]{20,255}                             # GitLab
      | xox[abeprs]-[A-Za-z0-9-]{10,255} | xapp-[A-Za-z0-9-]{20,255}  # Slack
      | (?:[sr]k|pk)_(?:live|test)_[A-Za-z0-9]{16,255} | whsec_[A-Za-z0-9]{20,255}  # Stripe
      | AIza[\w-]{35} | ya29\.[\w-]{20,512} | GOCSPX-[\w-]{20,64}     # Google
      | sk-[\w-]{20,255}                                              # OpenAI, Anthropic
      | hf_[A-Za-z0-9]{30,64}                                         # Hugging Face
      | npm_[A-Za-z0-9]{36} | pypi-[\w-]{50,512}
      | SG\.[\w-]{16,64}\.[\w-]{16,64}                                # SendGrid
      | eyJ[\w-]{8,4096}\.eyJ[\w-]{8,8192}(?:\.[\w-]{0,4096})?        # JWT
    )""",
    re.VERBOSE,
)
_PEM = re.compile(
    r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY(?: BLOCK)?-----(?:[^-]|-(?!----))*(?:-----END [A-Z ]{0,40}-----)?"
)
_ASSIGNED = re.compile(
    r"""(?:pass(?:word|wd|phrase|wort|e)|pwd|kennwort|contraseña|mot\ de\ passe|(?<![^\W_])secret|token
      |(?:api|access|secret|private|auth|account|encryption)[_\ -]?key|credentials?)
      ["']?\s{0,3}(?P<sign>[:=]>?|:=)\s{0,3}["']?(?P<value>[^\s"'`,;&<>\ufffc]{4,512})""",
    re.VERBOSE | re.IGNORECASE,
)
_NO_VALUE = re.compile(
    r"(?i)(?:none|null|true|false|undefined|\*+|x+|\.+|str\W?|string)\Z|[$%{(\[<]|os\.|self\.|https?:"
)


def _keys(text: str) -> Iterator[Found]:
    for token in _TOKEN.finditer(text):
        if re.search(r"\d", token[0]):
            yield Found(*token.span(), "KEY", token[0], 0.95)
    for block in _PEM.finditer(text):
        yield Found(*block.span(), "KEY", block[0], 1.0)
    for assigned in _ASSIGNED.finditer(text):
        value = assigned["value"].rstrip(".)]}!?")
        # After a colon there may be words: "the secret: chocolate".
        is_code = assigned["sign"] != ":" or (len(value) >= 6 and re.search(r"[\d\W_]", value) is not None)
        if len(value) >= 4 and is_code and not _NO_VALUE.match(value):
            start = assigned.start("value")
            yield Found(start, start + len(value), "KEY", value, 0.7)


_USERINFO = re.compile(r"(?<=://)[^\s/@?#:\"'<>\ufffc]{0,128}:[^\s/@\"'<>\ufffc]{1,256}(?=@)")
_PARAMETER = re.compile(
    r"""[?&;#](?:[\w.-]{0,20}[_.-])?(?:token|api_?key|key|secret|sig|signature|password|passwd|pwd|pass|credential|auth
      |access_?token|jwt|sid|session_?id)=(?P<value>[^\s&#;"'<>\ufffc]{4,4096})""",
    re.VERBOSE | re.IGNORECASE,
)


def _url_credentials(text: str) -> Iterator[Found]:
    for user in _USERINFO.finditer(text):
        yield Found(*user.span(), "URL_CREDENTIALS", user[0], 1.0)
    for parameter in _PARAMETER.finditer(text):
        yield Found(*parameter.span("value"), "URL_CREDENTIALS", parameter["value"], 0.97)


_WALLET = re.compile(r"(?<![A-Za-z0-9])(?:0x[0-9A-Fa-f]{40}|4[0-9AB][1-9A-HJ-NP-Za-km-z]{93})(?![A-Za-z0-9])")


def _wallets(text: str) -> Iterator[Found]:
    """Of Ethereum and Monero; presidio has those of Bitcoin."""
    for wallet in _WALLET.finditer(text):
        yield Found(*wallet.span(), "CRYPTO", wallet[0], 0.9)


# Numbers


@dataclass(frozen=True)
class _Number:
    """A kind of numbers.

    Attributes:
        type: one of TYPES.
        find: where its form is, and how sure that is.
        context: words that stand near it.
        alone: forms that count without such a word; None: none does.
    """

    type: str
    find: Callable[[str], Iterator[tuple[int, int]]]
    context: re.Pattern[str]
    alone: re.Pattern[str] | None

    def __call__(self, text: str) -> Iterator[Found]:
        for start, end in self.find(text):
            value = text[start:end]
            if not _whole(text, start, end) or _FILLER in value:
                continue
            near = _near(self.context, text, start, end)
            if near or (self.alone is not None and self.alone.fullmatch(value)):
                yield Found(start, end, self.type, _canonical(value), 0.85 if near else 0.65)


def _form(pattern: str, module: str = "", enough: int = 0) -> Callable[[str], Iterator[tuple[int, int]]]:
    """Where a pattern is that holds for a module of python-stdnum, or has so many digits."""
    compiled = re.compile(rf"(?<![^\W_])(?:{pattern})(?![^\W_])")
    is_valid: Callable[[str], bool] = importlib.import_module(f"stdnum.{module}").is_valid if module else _always

    def spans(text: str) -> Iterator[tuple[int, int]]:
        for match in compiled.finditer(text):
            if sum(sign.isdigit() for sign in match[0]) >= enough and is_valid(re.sub(r"[ .-]", "", match[0])):
                yield match.span()

    return spans


def _always(value: str) -> bool:
    return True


def _presidio(name: str, **options: Any) -> Callable[[str], Iterator[tuple[int, int]]]:
    """Where a recognizer of presidio finds something."""
    recognizers = importlib.import_module("presidio_analyzer.predefined_recognizers")
    recognizer = getattr(recognizers, name)(**options)

    def spans(text: str) -> Iterator[tuple[int, int]]:
        for result in recognizer.analyze(text, recognizer.supported_entities, None):
            yield result.start, result.end

    return spans


_PASSPORT = ("passport", "reisepass", "passeport", "pasaporte", "passaporto", "paspoort", "travel document")
_LICENSE = (
    "driver's license", "driver's licence", "drivers license", "driver license", "driving licence", "driving license",
    "führerschein", "permis de conduire", "carnet de conducir", "permiso de conducir", "patente di guida", "patente n",
    "rijbewijs", "dvla",
)  # fmt: skip
_CARDS = (
    "credit card", "debit card", "card n", "my card", "this card", "visa", "mastercard", "maestro", "amex",
    "kreditkarte", "tarjeta", "carte bancaire", "carte de crédit", "carta di credito",
)  # fmt: skip
_CARD = (
    (
        r"4\d{3}SD{4}SD{4}SD{4}(?:SD{3})?|5[1-5]DDSD{4}SD{4}SD{4}|2[2-7]DDSD{4}SD{4}SD{4}|6DDDSD{4}SD{4}SD{4}(?:SD{1,3})?"
        r"|35DDSD{4}SD{4}SD{4}|3[47]DDSD{6}SD{5}|3(?:0[0-5]|[689]D)DSD{6}SD{4}"
    )
    .replace("D", r"\d")
    .replace("S", "[ -]?")
)

_ANY = r".*"


@cache
def _number_finders() -> tuple[_Finder, ...]:
    """One for each kind of numbers; imports what they need."""
    # Some of presidio's messages hold the value that could not be checked.
    logging.getLogger("presidio-analyzer").propagate = False
    from presidio_analyzer.predefined_recognizers import InPanRecognizer

    def number(type: str, find: Any, context: Sequence[str], alone: str | None = None) -> _Number:
        return _Number(type, find, _words(context), None if alone is None else re.compile(alone, re.DOTALL))

    def id(find: Any, context: Sequence[str], alone: str | None = None) -> _Number:
        return number("NATIONAL_ID", find, context, alone)

    # InPan's other patterns take any word of ten letters, in a time that grows with the square of the text.
    pan = _presidio("InPanRecognizer", patterns=InPanRecognizer.PATTERNS[:1])
    return (
        _phones,
        _ips,
        number("CARD", _form(_CARD, "luhn"), ["card"], _ANY),
        number("CARD", _form(r"\d(?:[ -]?\d){11,18}", "luhn"), _CARDS),
        number("IBAN", _presidio("IbanRecognizer"), ["iban"], _ANY),
        number("CRYPTO", _presidio("CryptoRecognizer"), ["wallet"], _ANY),
        id(_presidio("UsSsnRecognizer"), ["social security", "ssn"], r"\d{3}-\d{2}-\d{4}"),
        id(_presidio("UsItinRecognizer"), ["itin", "taxpayer"], r"9\d\d-\d\d-\d{4}"),
        id(_presidio("NhsRecognizer"), ["nhs", "national health", "health service"], r"\d{3} \d{3} \d{4}"),
        id(_presidio("UkNinoRecognizer"), ["national insurance", "nino", "ni number"], r"[A-Z]{2}[\d ]+[A-D]"),
        id(_presidio("EsNifRecognizer"), ["dni", "nif"], r"\d{8}-?[A-Z]"),
        id(_presidio("EsNieRecognizer"), ["nie"], r"[XYZ]\d{7}-?[A-Z]"),
        id(_presidio("ItFiscalCodeRecognizer"), ["codice fiscale"], _ANY),
        id(_presidio("PlPeselRecognizer"), ["pesel"]),
        id(_presidio("SgFinRecognizer"), ["nric"], r"[STFGM]\d{7}[A-Z]"),
        id(_presidio("AuTfnRecognizer"), ["tfn", "tax file"]),
        id(_presidio("AuMedicareRecognizer"), ["medicare"]),
        id(_presidio("CaSinRecognizer"), ["social insurance", "sin number", "assurance sociale", "numéro nas"]),
        id(_presidio("InAadhaarRecognizer"), ["aadhaar", "aadhar", "uidai"], r"\d{4} \d{4} \d{4}"),
        id(pan, ["permanent account", "pan"], r"[A-Z]{5}\d{4}[A-Z]"),
        id(_presidio("FiPersonalIdentityCodeRecognizer"), ["hetu", "henkilötunnus"], _ANY),
        id(_presidio("SePersonnummerRecognizer"), ["personnummer"], r"\d{6}[-+]\d{4}"),
        id(_presidio("DeSocialSecurityRecognizer"), ["versicherungsnummer"], _ANY),
        id(_presidio("DeIdCardRecognizer"), ["personalausweis", "ausweis"]),
        id(_presidio("KrRrnRecognizer"), ["주민등록번호", "rrn"], r"\d{6}-\d{7}"),
        id(_presidio("ThTninRecognizer"), ["thai", "national id"]),
        id(_presidio("TrNationalIdRecognizer"), ["kimlik", "tckn"]),
        id(_presidio("ZaIdNumberRecognizer"), ["identity number", "id number", "south african"]),
        id(_form(r"[12] ?\d\d ?\d\d ?\d[\dAB] ?\d{3} ?\d{3} ?\d\d", "fr.nir"), ["sécurité sociale", "nir"], _ANY),
        id(
            _form(r"[1-9]\d(?: ?\d{3}){3}", "de.idnr"),
            ["steuer-id", "steuerid", "steuerliche", "steueridentifikation", "idnr", "tax id"],
            r"\d\d \d{3} \d{3} \d{3}",
        ),
        id(_form(r"\d{9}|\d{4}\.\d\d\.\d{3}", "nl.bsn"), ["bsn", "burgerservicenummer"]),
        id(
            _form(r"\d\d\.?\d\d\.?\d\d-?\d{3}\.?\d\d", "be.nn"),
            ["rijksregister", "registre national", "national number"],
            r"\d\d\.\d\d\.\d\d-\d{3}\.\d\d",
        ),
        id(_form(r"756\.?\d{4}\.?\d{4}\.?\d\d", "ch.ssn"), ["ahv", "avs"], r"756\..*"),
        id(_form(r"\d{4} ?\d{6}", "at.vnr"), ["svnr", "sozialversicherung", "versicherungsnummer"]),
        id(_form(r"\d{3}\.?\d{3}\.?\d{3}-?\d\d", "br.cpf"), ["cpf"], r"\d{3}\.\d{3}\.\d{3}-\d\d"),
        id(_form(r"\d{6} ?\d{5}", "no.fodselsnummer"), ["fødselsnummer", "personnummer"]),
        id(_form(r"\d{6}-?\d{4}", "dk.cpr"), ["cpr", "personnummer"]),
        id(_form(r"\d{17}[\dX]", "cn.ric"), ["身份证"], _ANY),
        id(_form(r"[A-Z]{4}\d{6}[A-Z]{6}[A-Z\d]\d", "mx.curp"), ["curp"], _ANY),
        id(_form(r"\d{3} ?\d{3} ?\d{3}", "pt.nif"), ["nif", "contribuinte"]),
        number("PASSPORT", _form(r"[A-Za-z0-9]{6,9}", "", 5), _PASSPORT),
        number("DRIVER_LICENSE", _presidio("UkDrivingLicenceRecognizer"), _LICENSE, r"[A-Z0-9]*"),
        number("DRIVER_LICENSE", _form(r"[A-Za-z0-9](?:-?[A-Za-z0-9]){5,17}", "", 5), _LICENSE),
    )


_VERSIONED = re.compile(r"(?i)(?:\bv|version|release|build|firmware)[ .:=]{0,3}\Z")


def _ips(text: str) -> Iterator[Found]:
    for start, end in _ip_spans()(text):
        try:
            value = ipaddress.ip_interface(text[start:end])
        except ValueError:
            continue
        goes_on = value.version == 6 and text[end : end + 1] == ":"  # behind one of version 4 stands a port
        versioned = _VERSIONED.search(text[max(0, start - 12) : start])
        if not (value.ip.is_unspecified or goes_on or versioned) and _whole(text, start, end):
            yield Found(start, end, "IP", str(value.ip), 0.8)


@cache
def _ip_spans() -> Callable[[str], Iterator[tuple[int, int]]]:
    return _presidio("IpRecognizer")


_PHONE = re.compile(r"(?<![^\W_])(?<!\d[.,])(?:\+|\((?=\d))?\d(?:[ ()./-]{0,3}\d){6,16}(?![^\W_])")
_DATE = re.compile(r"(?:\d{1,2}([./-])\d{1,2}\1(?:\d{4}|\d\d)|\d{4}([./-])\d{1,2}\2\d{1,2})(?![./-]?\d)")
_DOTTED = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}")
_NORTH_AMERICAN = re.compile(r"(?:1[ .-])?(?:\(\d{3}\) ?|\d{3}[.-])\d{3}[ .-]\d{4}")
_LEAST = 9
"""Digits of a number that no country is known to give out, but that is called a telephone's, or begins with +."""
_NATIONAL = re.compile(r"(?=\(?0\d)(?=.*?(?:\d[ )/-]|\d\.\d\d\.))")
_PHONE_WORDS = _words(
    """phone tel telefon telephone teléfono téléphone telefono telefoon fax cell mobile mobil móvil mob cellulare
    whatsapp sms rufnummer""".split()  # noqa: SIM905
)
_CALLING = _words("call ruf anruf llama appel chiama dial handy portable".split())  # noqa: SIM905
_REGIONS = ("US", "GB", "DE", "FR", "ES", "IT", "NL", "BE", "CH", "AT", "PL", "SE", "AU", "IN", "BR", "MX", "JP")
"""Whose numbers are known without the country's code."""


def _phones(text: str) -> Iterator[Found]:
    """Numbers with + (or 00) of any country; others by their form, or near a word such as "tel"."""
    from phonenumbers import Leniency, PhoneNumberFormat, PhoneNumberMatcher, format_number

    for form in _PHONE.finditer(text):
        (start, end), value = form.span(), form[0]
        if _DATE.match(value) or _DOTTED.fullmatch(value):
            continue
        digits = sum(sign.isdigit() for sign in value)
        named = _near(_PHONE_WORDS, text, start, end)
        regions: Sequence[str | None] = ()
        if value.startswith("+"):
            regions = (None,)
        elif value.startswith("00"):
            regions = ("DE",)  # one of those that dial 00 before a country's code
        elif named or _near(_CALLING, text, start, end):
            regions = _REGIONS
        elif _NORTH_AMERICAN.fullmatch(value):
            regions = ("US",)
        elif _NATIONAL.match(value) and digits >= _LEAST and text[start - 1 : start] != "-":
            regions = _REGIONS[1:]
        leniency = Leniency.POSSIBLE if value.startswith("+") and digits >= _LEAST else Leniency.VALID
        matches = (match for region in regions for match in PhoneNumberMatcher(value, region, leniency))
        if match := next(matches, None):
            number = format_number(match.number, PhoneNumberFormat.E164)
            score = 0.83 if named else 0.75 if value.startswith("+") else 0.6
            yield Found(start + match.start, start + match.end, "PHONE", number, score)
        elif named and digits >= _LEAST:
            yield Found(start, end, "PHONE", _canonical(value), 0.55)


# Names

_MODELS = ("en_core_web_lg", "en_core_web_md", "en_core_web_sm", "en_core_web_trf")


@cache
def _model() -> str:
    """The model of spaCy that finds names, "" where none is installed."""
    return next((name for name in _MODELS if importlib.util.find_spec(name) is not None), "")


@cache
def _language() -> Any:
    import spacy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a model of a neighbouring version
        return spacy.load(_model(), enable=["tok2vec", "transformer", "ner"])


def _names(text: str) -> Iterator[Found]:
    start = 0
    while start < len(text):
        end = len(text) if len(text) - start <= _CHUNK else text.rfind(" ", start, start + _CHUNK) + 1
        end = end if end > start else start + _CHUNK
        for name in _language()(text[start:end]).ents:
            if name.label_ == "PERSON" and re.fullmatch(r"[^\d@<>/\\\ufffc]*[^\W\d][^\d@<>/\\\ufffc]*", name.text):
                span = start + name.start_char, start + name.end_char
                yield Found(*span, "NAME", " ".join(name.text.casefold().split()), 0.5)
        start = end


def _finders() -> tuple[_Finder, ...]:
    return (_emails, _keys, _url_credentials, _wallets, *([_names] if _model() else []))


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"
