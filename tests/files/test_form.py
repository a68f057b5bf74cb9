"""A form is read as it arrives, however it is cut, and whatever is wrong with it is named."""

from __future__ import annotations

import pytest

from api.multipart_form import MAX_PARTS, MultipartForm
from api.upload import UploadedFile
from ondol.contract.errors import InvalidPayload
from tests.files.store_folder import BOUNDARY, form, form_type, part

pytestmark = pytest.mark.unit

CONTENT = f"a\r\n--{BOUNDARY[:-1]}\r\n\r\n--frontie\r\n".encode() * 50 + bytes(range(256))
PURPOSE = part("purpose", b"fine-tune")


def read(body: bytes, *, step: int, content_type: str | None = None) -> tuple[bytes, UploadedFile]:
    uploaded, content = UploadedFile(), b""
    parsed = MultipartForm(
        content_type or form_type()["content-type"],
        file_field="file",
        on_field=uploaded.take_field,
        on_filename=uploaded.take_filename,
    )
    for start in range(0, len(body), step):
        parsed.feed(body[start : start + step])
        content += parsed.take()
    parsed.end()
    uploaded.check_complete()
    return content, uploaded


@pytest.mark.parametrize("step", [1, 2, 7, 64, 100_000])
@pytest.mark.parametrize("is_file_first", [True, False])
def test_any_cut_gives_the_same_bytes(step: int, is_file_first: bool) -> None:
    file = part("file", CONTENT, filename='한글 "1".csv'.replace('"', '\\"'))
    content, uploaded = read(form(*([file, PURPOSE] if is_file_first else [PURPOSE, file])), step=step)
    assert content == CONTENT
    assert (uploaded.filename, uploaded.purpose) == ('한글 "1".csv', "fine-tune")


def test_expiry_is_taken_and_unknown_fields_are_not() -> None:
    expiry = [part("expires_after[anchor]", b"created_at"), part("expires_after[seconds]", b"7200")]
    _, uploaded = read(form(PURPOSE, *expiry, part("colour", b"red"), part("file", b"x", filename="a.csv")), step=50)
    assert uploaded.expires_after_s == 7200


ANCHOR = part("expires_after[anchor]", b"created_at")
FILE = part("file", b"x", filename="a.csv")
WRONG_FORMS = {
    "no file": (form(PURPOSE), "file"),
    "no purpose": (form(FILE), "purpose"),
    "unknown purpose": (form(part("purpose", b"poetry"), FILE), "purpose"),
    "purpose that is not UTF-8": (form(part("purpose", b"\xff"), FILE), None),
    "two files": (form(PURPOSE, FILE, FILE), "file"),
    "file without a name": (form(PURPOSE, part("file", b"x")), "file"),
    "empty name": (form(PURPOSE, part("file", b"x", filename="")), "file"),
    "path": (form(PURPOSE, part("file", b"x", filename="../a.csv")), "file"),
    "Windows path": (form(PURPOSE, part("file", b"x", filename="a\\\\b.csv")), "file"),
    "parent": (form(part("purpose", b"user_data"), part("file", b"x", filename="..")), "file"),
    "control character": (form(PURPOSE, part("file", b"x", filename="a\x07.csv")), "file"),
    "long name": (form(PURPOSE, part("file", b"x", filename="a" * 252 + ".csv")), "file"),
    "suffix": (form(PURPOSE, part("file", b"x", filename="a.exe")), "file"),
    "suffix seen late": (form(part("file", b"x", filename="a.exe"), PURPOSE), "file"),
    "long field": (form(part("purpose", b"x" * 5000), FILE), "purpose"),
    "expiry without seconds": (form(PURPOSE, ANCHOR, FILE), "expires_after[seconds]"),
    "short expiry": (form(PURPOSE, part("expires_after[seconds]", b"3599"), FILE), "expires_after[seconds]"),
    "expiry in words": (form(PURPOSE, part("expires_after[seconds]", b"soon"), FILE), "expires_after[seconds]"),
    "wrong anchor": (form(PURPOSE, part("expires_after[anchor]", b"now"), FILE), "expires_after[anchor]"),
    "too many parts": (form(*[part("x", b"y")] * (MAX_PARTS + 1)), None),
    "no end": (form(PURPOSE, FILE)[:-6], None),
    "no form": (b'{"file": "x"}', None),
    "nothing": (b"", None),
    "part without a name": (form(part("", b"").replace(b'; name=""', b"")), None),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_FORMS)
@pytest.mark.parametrize("step", [3, 100_000])
def test_what_is_wrong_is_named(name: str, step: int) -> None:
    body, param = WRONG_FORMS[name]
    with pytest.raises(InvalidPayload) as caught:
        read(body, step=step)
    assert caught.value.param == param


OTHER_TYPES = [
    "application/json",
    "multipart/form-data",
    "multipart/form-data; boundary=",
    "multipart/mixed; boundary=a",
    "multipart/form-data; boundary=" + "x" * 5000,
    "x" * 300,
]


@pytest.mark.parametrize("content_type", OTHER_TYPES)
def test_another_content_type_is_refused(content_type: str) -> None:
    with pytest.raises(InvalidPayload) as caught:
        read(form(PURPOSE, FILE), step=10, content_type=content_type)
    assert caught.value.param == "Content-Type"
