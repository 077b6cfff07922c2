"""Images and label maps: decoding, encoding, and the colours that labels are shown in."""
