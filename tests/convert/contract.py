"""What every source must do: a suite that the test of each inherits."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import ClassVar

from recbole_jepa4rec.config.config import Config
from recbole_jepa4rec.config.protocol import NOBODY_TESTED, NOBODY_TRAINS
from recbole_jepa4rec.data.dataset import SequentialTextDataset


class SourceContract:
    """Subclass it as ``TestX`` with ``source = "x"``; ``write`` makes the files that x reads.

    Attributes:
        inter: rows of ``.inter`` that the files give.
        item: rows of ``.item``.
        broken: a line that the file of the interactions cannot hold, its line end included.
    """

    source: str
    inter: ClassVar[list[list[str]]]
    item: ClassVar[list[list[str]]]
    broken: ClassVar[bytes] = b"{\n"

    def write(self, folder: Path) -> list[Path]:
        """Files in the order of the command line, that of the interactions first."""
        raise NotImplementedError

    def test_what_is_written(self, made, tmp_path):
        words = self.source, *self.write(tmp_path)
        first, second = made(*words, out="first"), made(*words, out="second")
        assert first[:2] == second[:2] == (self.inter, self.item)
        assert first[2]["fingerprint"] == second[2]["fingerprint"]

    def test_a_broken_line_is_named_or_left_out(self, made, run, tmp_path):
        files = self.write(tmp_path)
        plain = files[0].with_name(files[0].name.removesuffix(".gz"))
        content = files[0].read_bytes()
        if files[0] != plain:
            content = gzip.decompress(content)
        plain.write_bytes(content + self.broken)
        words = self.source, plain, *files[1:]
        status, _, errors = run(*words)
        line = plain.read_bytes().count(b"\n")
        assert status == 2 and f"{plain}, line {line}: expected" in errors
        assert made(*words, "--max-bad", 1)[:2] == (self.inter, self.item)

    def test_a_run_loads_it(self, made, run, tmp_path):
        *_, statistics = made(self.source, *self.write(tmp_path))
        listed = run("check", tmp_path / "made", out=None)[1].splitlines()
        assert all(line.endswith((NOBODY_TESTED, NOBODY_TRAINS)) for line in listed)
        config = Config("Popularity", "made", config_dict={"data_path": str(tmp_path)})
        loaded = SequentialTextDataset(config)
        assert loaded.statistics() == statistics["statistics"]
        assert loaded.fingerprint == statistics["fingerprint"]
        ids = loaded.field2id_token["item_id"].tolist()
        texts = dict(zip(ids, loaded.item_text.to_numpy().tolist(), strict=True))
        assert texts == {"[PAD]": [""] * len(self.item[0][1:])} | {
            item: text for item, *text in self.item
        }
