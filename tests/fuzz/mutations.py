"""How many inputs a test tries, and how valid files are turned into broken ones."""

import struct

from hypothesis import settings
from hypothesis import strategies as st

# What parsers take for lengths, counts and signs: the ends of the types of integers.
ODD_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
HEADER = 64  # bytes; half of the changes are made there
MOST_CHANGES = 4
FORMS = (">B", ">H", "<H", ">I", "<I", ">Q", "<Q")


def few(examples):
    """Settings of a test: so many examples, or as many as --fuzz-examples says."""
    many = settings.get_current_profile_name() == "many"
    return settings() if many else settings(max_examples=examples)


@st.composite
def broken(draw, files):
    """Bytes of one of some valid files, changed, cut and spliced at random places."""
    data = bytearray(draw(st.sampled_from(files)))
    for _ in range(draw(st.integers(1, MOST_CHANGES))):
        end = min(HEADER, len(data)) if draw(st.booleans()) else len(data)
        at = draw(st.integers(0, max(0, end - 1)))
        length = draw(st.sampled_from((1, 2, 4, 16, 256)))
        match draw(st.sampled_from(("byte", "number", "bytes", "delete", "repeat", "splice"))):
            case "byte":
                data[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case "number":
                form = draw(st.sampled_from(FORMS))
                size = struct.calcsize(form)
                number = draw(st.sampled_from(ODD_NUMBERS)) & (256**size - 1)
                data[at : at + size] = struct.pack(form, number)
            case "bytes":
                data[at:at] = draw(st.binary(min_size=1, max_size=16))
            case "delete":
                del data[at : at + length]
            case "repeat":
                data[at:at] = data[at : at + length]
            case "splice":
                other = draw(st.sampled_from(files))
                start = draw(st.integers(0, len(other) - 1))
                data[at : at + length] = other[start : start + length]
    if not draw(st.integers(0, 7)):
        del data[draw(st.integers(0, len(data))) :]
    return bytes(data)
