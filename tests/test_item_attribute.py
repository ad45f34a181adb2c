"""Which item attributes a model reads, and what a data set without any is told."""

import pytest
import torch

from recbole_jepa4rec.config.config import Config
from recbole_jepa4rec.config.registry import find_dataset
from recbole_jepa4rec.data.item_files import (
    find_attributes,
    refuse_without_text,
    settle_attributes,
    with_item_columns,
)
from recbole_jepa4rec.runner.quick_start import main
from tests.conftest import ROOT, TINY

SETTINGS = {
    "model": "FDSA",
    "ITEM_ID_FIELD": "item_id",
    "seq_separator": " ",
    "selected_features": None,
}
FEATURED = ("FDSA", "SASRecF", "GRU4RecF")


@pytest.fixture
def made(workplace):
    """Writes a data set ``made`` with some lines of an item file, or without one."""

    def make(*lines):
        folder = workplace / "made"
        folder.mkdir()
        rows = [f"u{u}\t{(u + n) % 4}\t{n}" for u in range(6) for n in range(4)]
        header = "user_id:token\titem_id:token\ttimestamp:float"
        (folder / "made.inter").write_text("\n".join([header, *rows]) + "\n")
        file = folder / "made.item"
        if lines:
            file.write_text("\n".join(line.replace("|", "\t") for line in lines) + "\n")
        return file

    return make


def choice(file, **settings):
    where = {"dataset": file.stem, "data_path": str(file.parent), "source_datasets": None}
    return find_attributes({**SETTINGS, **where, **settings}, "selected_features")


class TestChoice:
    def test_the_fewest_distinct_words_win(self, made):
        file = made(
            "item_id:token|title:token_seq|genre:token_seq|maker:token|price:float",
            "0|a b c|x y|one|1",
            "1|d e f|y x|two|1",
            "2|g h|y|three|1",
        )
        assert choice(file) == ["genre"]

    def test_the_first_of_equals_wins(self, made):
        file = made("item_id:token|one:token|two:token", "0|a|c", "1|b|d")
        assert choice(file) == ["one"]

    def test_a_column_of_one_value_tells_nothing(self, made):
        file = made("item_id:token|same:token|title:token_seq", "0|a|x y", "1||z", "2|a|")
        assert choice(file) == ["title"]

    def test_words_are_parted_as_recbole_parts_them(self, made):
        file = made("item_id:token|a:token_seq|b:token", "0|x y,z|1", "1|x,y z|2", "2|x|3")
        assert choice(file) == ["b"]  # x, y,z, "x,y" and z are four words
        assert choice(file, seq_separator=",") == ["b"]

    def test_the_toy_set_counted_slowly(self):
        file = ROOT / "dataset" / "toy" / "toy.item"
        header, *lines = file.read_text(encoding="utf-8").rstrip("\n").split("\n")
        names = [cell.split(":") for cell in header.split("\t")]
        words = {name: set() for name, kind in names if kind.startswith("token")}
        for line in lines:
            for (name, kind), cell in zip(names, line.split("\t"), strict=True):
                if name in words:
                    words[name] |= set(cell.split(" ") if kind == "token_seq" else [cell])
        counts = {name: len(found - {""}) for name, found in words.items() if name != "item_id"}
        assert choice(file) == [min(counts, key=counts.get)] == ["brand"]

    def test_ml_100k_has_genres(self):
        for key, model in (("item_attribute", "S3Rec"), ("selected_features", "FDSA")):
            config = Config(model, "ml-100k")
            settle_attributes(config)
            assert config[key] == ("class" if model == "S3Rec" else ["class"])
            assert config["load_col"]["item"] == ["item_id", "class"]
            assert config.external()[key] == config[key]


class TestLoading:
    @pytest.mark.parametrize("model", FEATURED)
    def test_a_model_finds_its_column(self, model, toy):
        config = Config(model, config_dict={**toy, **TINY})
        parts = find_dataset(config.model_class)(config).build()
        net = config.model_class(config, parts[0])
        rows = parts[0].join(parts[0].inter_feat[0:8])
        assert torch.isfinite(net.calculate_loss(rows))

    def test_what_is_asked_for_is_loaded_beside_what_is_named(self, toy):
        given = {**toy, "load_col": {"inter": ["user_id"], "item": ["price"]}}
        config = Config("FDSA", config_dict={**given, "selected_features": ["title", "brand"]})
        settle_attributes(config)
        assert config["load_col"]["item"] == ["price", "item_id", "title", "brand"]
        assert config["selected_features"] == ["title", "brand"]
        again = Config(config_dict={**config.external()})
        assert again["load_col"] == config["load_col"]

    def test_load_col_that_loads_everything_stays(self):
        assert with_item_columns(None, ["a"]) is None
        assert with_item_columns({"item": "*"}, ["a"]) == {"item": "*"}
        assert with_item_columns({"inter": ["u"]}, ["a"]) == {"inter": ["u"], "item": ["a"]}

    def test_quotes_are_parts_of_words(self, made):
        made("item_id:token|kind:token_seq", '0|"half open', "1|plain", '2|two "words"', "3|x")
        config = Config("FDSA", "made", config_dict={"data_path": "."})
        dataset = find_dataset(config.model_class)(config)
        words = {*dataset.field2id_token["kind"]} - {"[PAD]"}
        assert words == {'"half', "open", "plain", "two", '"words"', "x"}

    def test_other_models_read_no_attributes(self, made):
        made()
        config = Config("SASRec", "made", config_dict={"data_path": "."})
        assert settle_attributes(config) == {}
        assert "item" not in config["load_col"]

    def test_another_run_of_the_same_data_reads_the_same_columns(self, toy):
        config, other = (Config("FDSA", config_dict={**toy, **TINY, "seed": s}) for s in (1, 2))
        data = find_dataset(config.model_class)(config).with_config(other)
        assert other["selected_features"] == config["selected_features"] == ["brand"]
        assert (data.config["seed"], other.external()["load_col"]) == (2, config["load_col"])


class TestRefusals:
    @pytest.mark.parametrize(
        ("words", "lines", "message"),
        [
            (
                ["--selected_features=[colour]"],
                ["item_id:token|title:token_seq|size:float|maker:token", "0|a|1|b"],
                "selected_features 'colour' is no token or token_seq column of made/made.item "
                "(there are: title, maker)",
            ),
            (
                ["--selected_features=[size]"],
                ["item_id:token|title:token_seq|size:float", "0|a|1"],
                "selected_features 'size' is no token or token_seq column of made/made.item "
                "(there are: title)",
            ),
            (
                ["--selected_features=[]"],
                ["item_id:token|title:token_seq", "0|a"],
                "selected_features names no column of made/made.item (there are: title)",
            ),
            (
                [],
                [],
                "selected_features: model 'FDSA' needs an item attribute, and data set 'made' has "
                "no file made/made.item",
            ),
            (
                [],
                ["item_id:token|size:float|kind:token", "0|1|a", "1|1|a"],
                "selected_features: model 'FDSA' needs an item attribute, and made/made.item has "
                "no token or token_seq column with at least 2 values beside the id",
            ),
        ],
    )
    def test_in_one_line_before_anything_is_written(self, words, lines, message, made, capsys):
        made(*lines)
        assert main(["--model=FDSA", "--dataset=made", "--data_path=.", *words]) == 2
        assert capsys.readouterr().err == f"error: {message}\n"

    def test_several_data_sets_share_no_attributes(self):
        with pytest.raises(ValueError, match="'S3Rec' needs item_attribute, and several data sets"):
            Config("S3Rec", "a,b")

    def test_a_data_set_that_is_not_there_is_left_to_loading(self, workplace, capsys):
        assert main(["--model=FDSA", "--dataset=gone", "--data_path=."]) == 2
        assert "no data set 'gone'" in capsys.readouterr().err


class TestText:
    @pytest.mark.parametrize(
        ("lines", "fault"),
        [
            ([], "there is no file made/made.item"),
            (
                ["item_id:token|price:float", "0|1"],
                "made/made.item has no token or token_seq column beside the id",
            ),
            (
                ["item_id:token|title:token_seq", "0|", "1| "],
                "title of made/made.item is empty for every item",
            ),
        ],
    )
    def test_a_data_set_without_is_refused_before_anything_is_written(
        self, lines, fault, made, workplace, capsys
    ):
        made(*lines)
        assert main(["--model=JEPA4Rec", "--dataset=made", "--data_path=."]) == 2
        reads = "model 'JEPA4Rec' reads item text, which data set 'made' lacks"
        assert capsys.readouterr().err == f"error: {reads}: {fault}\n"
        assert [path.name for path in workplace.iterdir()] == ["made"]
        refuse_without_text(Config("SASRec", "made", config_dict={"data_path": "."}))
        words = {"data_path": ".", "text_weight": 0}  # which JEPA4Rec does not read
        with pytest.raises(ValueError, match="reads item text, which"):
            refuse_without_text(Config("JEPA4Rec", "made", config_dict=words))

    def test_columns_that_are_asked_for_count(self, made):
        made("item_id:token|title:token_seq|price:float", "0||5", "1||6")
        given = {"data_path": ".", "item_text_fields": ["price"]}
        refuse_without_text(Config("JEPA4Rec", "made", config_dict=given))
        with pytest.raises(ValueError, match="has no column colour beside the id"):
            refuse_without_text(
                Config("JEPA4Rec", "made", config_dict={**given, "item_text_fields": "colour"})
            )

    def test_every_one_of_several_data_sets_needs_text(self, made, workplace):
        made()
        (workplace / "toy").symlink_to(ROOT / "dataset" / "toy")
        config = Config("JEPA4Rec", "toy,made", config_dict={"data_path": "."})
        with pytest.raises(ValueError, match="which data set 'made' lacks: there is no file"):
            refuse_without_text(config)
