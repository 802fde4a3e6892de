from __future__ import annotations

import io
import logging
import pickle
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from benchmarks.redaction import scores, sentences
from mmembed import redaction
from mmembed.errors import UsageError
from mmembed.redaction import HOW, TYPES, Redactor, find
from mmembed.secret import Secret

# A language model would find names in some of these.
pytestmark = pytest.mark.skipif(redaction._model() != "", reason="the expectations are those without a language model")

TAGS = Redactor("tags")
FULL_WIDTH = "".join(chr(ord(digit) + 0xFEE0) for digit in "4111111111111111")

# The value in brackets is to be found, and nothing else.
PRIVATE = {
    "EMAIL": """
        write to [john.doe@example.com], please
        [john.doe@example.com]_2.jpg
        from [a+b@mail.example.co.uk].png
        <[jörg@müller.de]>""",
    "PHONE": """
        IMG_[+49-30-901820].png
        [+1 212 555 0123]_001.jpg
        call [(212) 555-0123] now
        tel. [030 901820]
        Handy [01511234567]
        appelez le [06 12 34 56 78]
        [0151 12345678]
        [0049 30 901820]
        Mobile:\\n[070 4493 5104]""",
    "CARD": """
        [4111111111111111].png
        [4111 1111 1111 1111]
        Karte [5500-0000-0000-0004]
        [3782 822463 10005]
        my card number is [4222222222222]""",
    "IBAN": """
        [DE89 3704 0044 0532 0130 00]
        iban_[GB29NWBK60161331926819]_1.pdf""",
    "IP": """
        from [192.168.1.17] port 22
        [2001:db8::8a2e:370:7334]
        host_[10.1.2.3].log
        GET [10.0.0.1]:8080/a""",
    "URL_CREDENTIALS": """
        https://[ann:pa55]@example.com/a
        https://example.com/f.png?size=20&token=[abcdef123456]
        https://b.example/x?X-Amz-Signature=[0123abcd]&e=1""",
    "NATIONAL_ID": """
        [536-90-4399]
        SSN [536904399]
        ITIN [912-71-3456]
        NI number [JG121316A]
        NHS [9434765919]
        DNI [12345678Z]
        [X1234567L]
        [RSSMRA85T10A562S]
        PESEL [44051401359]
        NRIC [S1234567D]
        TFN [876 543 210]
        Medicare [2123 45670 1]
        Aadhaar [234123412346]
        PAN [ABCPE1234F]
        [131052-308T]
        [811228-9874]
        sécurité sociale [2 69 05 49 588 157 80]
        Steuer-ID [36574261809]
        BSN [111222333]
        [85.07.30-033.28]
        [756.9217.0769.85]
        [390.533.447-05]""",
    "PASSPORT": """
        passport_[912803456].png
        Reisepass Nr. [C01X00T47]""",
    "DRIVER_LICENSE": """
        driver's license [b24475771]
        Führerschein: [B072RRE2I55]
        [MORGA753116SM9IJ]""",
    "KEY": """
        [AKIAIOSFODNN7EXAMPLE]
        token [ghp_16C7e42F292c6912E7710c838347Ae178B4a]
        [sk_live_4eC39HqLyjWDarjtT1zdp7dc].txt
        [hf_abcdefghijKLMNOPQRST0123456789abcd]
        Bearer [eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U]
        DB_PASSWORD=[hunter2]
        api_key: "[0123abcd4567]"
        [-----BEGIN PRIVATE KEY-----\\nMIIEvQ==\\n-----END PRIVATE KEY-----]""",
    "CRYPTO": """
        [1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa]
        [bc1qar0srrr7xfkvy5l643lydnw9re59gtzzwf5mdq]
        [0x52908400098527886E0F7030069857D2E4169EE7]""",
}
LEFT = """
    id 000042
    scene-000042.jpg
    IMG_20240115_123456.jpg
    2024-01-15 12:30:45
    12.03.2024
    version 1.2.3.4
    v2.10.0
    $1,234,567.89
    1.234,56 €
    52.520008, 13.404954
    ISBN 978-3-16-148410-0
    ISBN 0-306-40615-2
    EAN 4006381333931
    ISSN 0870-9163
    869da816-0719-4518-a4eb-8071f37b7880
    d670460b4b4aece5915caf5c68d12f560a9fe3e4
    #ff00aa
    1920 x 1080 px
    1700000000
    icon@2x.png
    std::vector<int>
    the secret: chocolate
    password = None
    a person at a computer
    1 2 3 4 5 6 7 8 9 10 11 12
"""


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


CASES = [(type, case) for type, cases in PRIVATE.items() for case in lines(cases)]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


@pytest.fixture
def pseudonyms(monkeypatch: pytest.MonkeyPatch) -> Iterator[Redactor]:
    monkeypatch.setenv("MMEMBED_SECRET", "a secret that is long enough")
    yield Redactor("pseudonyms")


@pytest.mark.parametrize(("type", "case"), CASES)
def test_what_is_private_is_found_and_nothing_else(type: str, case: str) -> None:
    before, value, after = re.fullmatch(r"(.*?)\[(.*)\](.*)", case).groups()  # type: ignore[union-attr]
    assert TAGS.redact([before + value + after]) == [(f"{before}<{type}>{after}", {type: 1})]


def test_every_type_but_names_is_tried() -> None:
    assert {*PRIVATE, "NAME"} == set(TYPES)


@pytest.mark.parametrize("text", lines(LEFT))
def test_what_is_not_private_stays(text: str) -> None:
    assert TAGS.redact([text]) == [(text, {})]


def test_a_value_in_digits_of_another_script() -> None:
    assert TAGS.redact([f"4 {FULL_WIDTH}!"]) == [("4 <CARD>!", {"CARD": 1})]


def test_a_key_of_several_lines_goes_as_a_whole() -> None:
    key = (
        f"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\n{'MIIE1a+/' * 200}\n-----END RSA PRIVATE KEY-----"
    )
    assert TAGS.redact([f"a\n{key}\nb"])[0][0] == "a\n<KEY>\nb"
    assert TAGS.redact([key[:500]])[0][0] == "<KEY>"  # cut off


def test_values_are_counted_and_texts_stay_in_order() -> None:
    text = "a@example.com, b@example.com or +49 30 901820"
    redacted = ("<EMAIL>, <EMAIL> or <PHONE>", {"EMAIL": 2, "PHONE": 1})
    assert TAGS.redact(["x", text, ""]) == [("x", {}), redacted, ("", {})]


def test_a_value_has_one_pseudonym_however_it_is_written(pseudonyms: Redactor) -> None:
    spellings = ["+49 30 901820", "IMG_+49-30-901820.png", "tel 030 901820"]
    found = {re.findall(r"<.*>", text)[0] for text, _ in pseudonyms.redact(spellings)}
    assert len(found) == 1 and re.fullmatch(r"<PHONE_[0-9a-f]{12}>", found.pop())
    one, same, other = (text for text, _ in pseudonyms.redact(["a@example.com", "A@Example.com", "b@example.com"]))
    assert one == same != other


def test_pseudonyms_are_those_of_the_secret(pseudonyms: Redactor, monkeypatch: pytest.MonkeyPatch) -> None:
    first = pseudonyms.redact(["a@example.com"])
    assert first == Redactor("pseudonyms").redact(["a@example.com"])
    assert first == [("<EMAIL_" + first[0][0][7:], {"EMAIL": 1})]
    monkeypatch.setenv("MMEMBED_SECRET", "another secret, long enough")
    assert first != pseudonyms.redact(["a@example.com"])


def test_a_redactor_is_pickled_without_the_secret(pseudonyms: Redactor) -> None:
    pseudonyms.redact(["a@example.com"])
    data = pickle.dumps(pseudonyms)
    assert b"long enough" not in data and len(data) < 500
    assert pickle.loads(data) == pseudonyms


def test_tags_need_no_secret_and_pseudonyms_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MMEMBED_SECRET", raising=False)
    assert TAGS.redact(["a@example.com"])[0][0] == "<EMAIL>"
    with pytest.raises(UsageError, match="a secret is needed"):
        Redactor("pseudonyms", Secret()).redact(["nothing"])


@pytest.mark.parametrize("how", ["none", "hide", ""])
def test_a_way_that_redacts_nothing_is_refused(how: str) -> None:
    assert "none" in HOW
    with pytest.raises(UsageError, match="must be tags or pseudonyms"):
        Redactor(how)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    TAGS.check()
    monkeypatch.setattr(redaction, "PACKAGES", ("re", "no_such_package"))
    with pytest.raises(UsageError, match=r"needs no_such_package: pip install 'mmembed\[privacy\]'"):
        TAGS.check()


def test_the_version_and_the_module_load_nothing() -> None:
    program = "import sys, mmembed.redaction as r; r.Redactor('tags').check(); print(r.Redactor('tags').version)"
    tail = "; print({'spacy', 'presidio_analyzer', 'phonenumbers', 'torch'} & set(sys.modules))"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program + tail], cwd=root, capture_output=True, text=True, check=True)
    version, loaded = done.stdout.splitlines()
    assert re.match(r"redaction=\d+ presidio_analyzer=\d+\.\d+\.\d+ phonenumbers=\d+", version)
    assert loaded == "set()" and done.stderr == ""


def test_presidio_logs_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its messages may hold the value that could not be checked; the root's handlers, such as Beam's, get none."""
    stream = io.StringIO()
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.StreamHandler(stream)])
    TAGS.redact(["DE89 3704 0044 0532 0130 01"])
    logging.getLogger("presidio-analyzer").error("Failed to validate text DE89")
    logging.getLogger("another").error("a line")
    assert stream.getvalue() == "a line\n"


# Pieces that values are made of, so that what hypothesis draws comes close to some.
PIECES = ["4111111111111111", "+49 30 901820", "a@example.com", "536-90-4399", "tel ", "passport ", "password=", "://"]
PIECES += ["ghp_16C7e42F292c6912E7710c838347Ae178B4a", "<EMAIL>", "<PHONE_0123456789ab>", "<", ">", "@", "_", ".", "-"]
PIECES += [
    "DE89370400440532013000",
    "?token=",
    "192.168.1.17",
    "::",
    " ",
    "\n",
    "12",
    "0151 ",
    "card n ",
    "\\n",
    "é",
    "|",
]
ANY = st.text(st.characters(exclude_categories=()), max_size=60)
TEXTS = st.one_of(ANY, st.lists(st.one_of(st.sampled_from(PIECES), ANY), max_size=8).map("".join))


@settings(max_examples=300, deadline=None)
@given(TEXTS)
@example("\ud800\x00 4111111111111111")
@example("\ud800@\udfff.com password=\ud800\ud800\ud800\ud800")
def test_redacted_text_is_left_as_it_is(text: str) -> None:
    redacted, counts = TAGS.redact([text])[0]
    assert TAGS.redact([redacted]) == [(redacted, {})]
    assert (redacted == text) == (not counts)


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_redacted_text_with_pseudonyms_likewise(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMEMBED_SECRET", "a secret that is long enough")
        redactor = Redactor("pseudonyms")
        redacted, counts = redactor.redact([text])[0]
        assert redactor.redact([redacted]) == [(redacted, {})]
        assert counts == TAGS.redact([text])[0][1]


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_what_the_prefilter_skips_holds_nothing(text: str) -> None:
    assert find(text) == find(text, prefilter=False)


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_findings_are_in_order_and_apart(text: str) -> None:
    found = find(text)
    assert all(one.start < one.end for one in found)
    assert all(one.end <= other.start for one, other in pairwise(found))


@pytest.mark.parametrize(
    "part", ["a", "1", "1-", "1 ", "a@", "a@b.", "x=", "password=", "?key=", "eyJ", ":", "é", "0 1"]
)
def test_time_grows_no_faster_than_the_text(part: str) -> None:
    """CPU time, four times the text; with room for a busy machine."""
    import time

    def seconds(size: int) -> float:
        text = (part * size)[:size]
        start = time.process_time()
        TAGS.redact([text])
        return time.process_time() - start

    seconds(1000)
    assert seconds(80_000) < 10 * max(seconds(20_000), 0.05)


def test_names_are_found_by_a_language_model(monkeypatch: pytest.MonkeyPatch) -> None:
    spacy = pytest.importorskip("spacy")
    language = spacy.blank("en")
    ruler = language.add_pipe("entity_ruler")
    ruler.add_patterns([{"label": "PERSON", "pattern": name} for name in ("Anna Smith", "R2D2")])
    monkeypatch.setattr(redaction, "_model", lambda: "en_core_web_sm")
    monkeypatch.setattr(redaction, "_language", lambda: language)
    assert TAGS.redact(["Anna Smith and R2D2 on a bench"]) == [("<NAME> and R2D2 on a bench", {"NAME": 1})]
    long = "a bench " * 30_000  # in pieces
    assert TAGS.redact([f"{long}Anna Smith"])[0][1] == {"NAME": 1}
    assert "en_core_web_sm=" in TAGS.version


def test_most_of_what_is_private_is_found_and_little_else() -> None:
    """On templates that are not those of the tuning; benchmarks/redaction.py says what the figures are worth."""
    found = scores(sentences("held-out", 400, 3), types=TYPES[:-1])
    assert all(score.spans >= 5 for score in found.values())
    assert all(score.recall > 0.9 and score.precision > 0.9 for score in found.values())
    assert found["all"].recall > 0.97 and found["all"].precision > 0.97 and found["all"].covered > 0.97
