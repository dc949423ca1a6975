"""What is written comes back as it was."""

import msgspec

from detoxbench.records import Sample


def test_tags_are_the_same_bytes_when_they_were_read_back() -> None:
    tags = {"words": 9, "share": 9.0, "group": "a", "of": ["b", "c"]}
    sample = Sample(id="a", record="a", kind="k", sample=0, prompt="p", text="t", stop="length", tokens=1, tags=tags)
    written = msgspec.json.encode(sample)
    assert msgspec.json.encode(msgspec.json.decode(written, type=Sample)) == written
