"""JPEGs whose last scan is repeated: legal to libjpeg, and each repetition costs a pass."""

_SOS, _EOI = b"\xff\xda", b"\xff\xd9"


def with_scans(jpeg: bytes, count: int) -> bytes:
    """The file of one image with its last scan repeated until there are `count` scans."""
    end, start = jpeg.rfind(_EOI), jpeg.rfind(_SOS)
    before = jpeg[:start].count(_SOS)
    return jpeg[:start] + jpeg[start:end] * (count - before) + jpeg[end:]
