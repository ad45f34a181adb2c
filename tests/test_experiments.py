"""Experiments of the paper: their files, the rows they stand for, and what is said of them."""

import json
import shutil
from pathlib import Path

import pytest

from recbole_jepa4rec.__main__ import main as command
from recbole_jepa4rec.base.yaml_files import find_properties, read_yaml
from recbole_jepa4rec.config.registry import find_entry
from recbole_jepa4rec.config.syntax import keys_of_others, refuse_unknown
from recbole_jepa4rec.study.comparison import compare
from recbole_jepa4rec.study.experiment import (
    experiment_names,
    facts_of,
    holds,
    pretraining_lines,
    read_experiment,
    reference_of,
    variants_of,
)
from recbole_jepa4rec.study.figures import comparison_plots
from recbole_jepa4rec.study.group import main, read_request
from recbole_jepa4rec.study.report import write_report
from tests.conftest import ROOT
from tests.handmade_runs import row

TINY = ["--show_progress=False", "--hidden_size=8", "--intermediate_size=16", "--epochs=1"]


@pytest.fixture
def shops(workplace):
    """Two data sets, and the words that name the first for a target."""
    for name in ("shop", "other"):
        Path(name).mkdir()
        for kind in ("inter", "item"):
            shutil.copy(ROOT / "dataset" / "toy" / f"toy.{kind}", f"{name}/{name}.{kind}")
    return ["--dataset=shop", "--data_path=.", "--run_dir=out", *TINY]


def rows_of(experiment, *, entries=(), sources=("other", "more"), start=None):
    return variants_of(experiment, entries, {"dataset": "shop"}, sources, start)


def comparison_of(name, tmp_path, means, dataset="toy", published=None):
    """A comparison of handmade rows; ``means`` gives each row's share of targets at rank 1."""
    experiment = read_experiment(name)
    variants = rows_of(experiment)
    rows = []
    for number, variant in enumerate(variants):
        hits = means[number % len(means)]
        ranks = [1] * hits + [50] * (10 - hits)
        rows.append(row(tmp_path, variant.name, ranks, label=variant.model, dataset=dataset))
    reference = reference_of(variants, experiment.reference)
    found = compare(rows, reference, dataset, {}, "command", always=True)
    if published:
        same = {"statistics": {}, "relative": {}, "warning": None, "note": None}
        found["data"]["published"] = {"name": published, **same}
    found["experiment"] = facts_of(
        experiment, variants, found, {variant.name: [3.0] for variant in variants}
    )
    return json.loads(json.dumps(found, default=str))


@pytest.mark.parametrize("name", experiment_names())
class TestEveryFile:
    def test_every_row_is_of_known_settings_that_its_model_reads(self, name):
        experiment = read_experiment(name)
        rows = rows_of(experiment)
        assert len({each.name for each in rows}) == len(rows) > 1
        for each in rows:
            given = {**each.own, **each.on_target}
            refuse_unknown(given, each.name)
            assert not keys_of_others(find_entry(each.model)[0]) & given.keys(), each.name
        if experiment.reference:
            assert any(each.name.endswith(f":{experiment.reference}") for each in rows)

    def test_every_row_resolves(self, name, shops):
        words = [*shops, f"--experiment={name}", "--pretrain_dataset=other"]
        request = read_request(words)
        assert request.reference in [each.name for each in request.rows]
        assert [cell.entry for cell in request.cells] == [each.name for each in request.rows]
        names = {cell.folder.as_posix() for cell in request.pretraining}
        for cell, each in zip(request.cells, request.rows, strict=True):
            start = cell.settings["checkpoint"]
            assert (start in names) if each.sources else start is None
        assert all(cell.settings["train_stage"] == "pretrain" for cell in request.pretraining)

    def test_what_the_paper_prints_is_of_its_data_and_of_rows(self, name):
        experiment = read_experiment(name)
        known = read_yaml(find_properties() / "published_statistics.yaml")
        names = {each.name.partition(":")[2] for each in rows_of(experiment)}
        for dataset, rows in experiment.published.items():
            assert dataset in known
            for entry, figures in rows.items():
                assert entry.partition(":")[2] in names
                assert {*figures} == {"ndcg@10", "recall@10", "mrr"}

    def test_what_holds_is_said_and_drawn(self, name, tmp_path):
        found = comparison_of(name, tmp_path, (3, 5, 4, 1))
        said = holds(found)
        assert "{" not in said and "NDCG@10" in said and said.endswith(".")
        write_report(found, tmp_path)
        for kind in ("md", "html", "tex"):
            assert said.split(" ")[0] in (tmp_path / f"comparison.{kind}").read_text()
        if found["experiment"]["axis"]:
            lines = [each for each in comparison_plots(found) if "By " in each["caption"]]
            assert [len(each["figure"]["data"]) for each in lines] == [
                len({each["series"] for each in found["experiment"]["rows"].values()})
            ] * len(found["user_metrics"])

    def test_it_stands_on_the_page(self, name):
        page = (ROOT / "docs" / "experiments.md").read_text()
        assert f"| `{name}` | {read_experiment(name).paper} |" in page


class TestSentences:
    def test_ablations(self, tmp_path):
        found = comparison_of("ablations", tmp_path, (6, 5, 3, 7, 6), dataset="amazon-scientific")
        assert holds(found) == (
            "2 of 4 rows are below JEPA4Rec whole (NDCG@10 0.6000), 0 of them by the paired test; "
            "JEPA4Rec without-mapping is lowest (0.3000, -50.0 %)."
        )
        found["rows"][2]["status"] = "partial"
        assert holds(found) == "Ablations: 4 of 5 rows are finished."

    def test_a_curve_names_who_leads(self, tmp_path):
        means = [1] * 5 + [2] * 5 + [3] * 5 + [0, 1, 2, 4, 5]
        assert holds(comparison_of("low_resource", tmp_path, means)) == (
            "With 0.01 of the users trained on, RecFormer leads with NDCG@10 0.3000; with all of "
            "them JEPA4Rec does with 0.5000."
        )

    def test_a_curve_names_what_a_little_changes(self, tmp_path):
        said = holds(
            comparison_of("revealed_words", tmp_path, [2, 2, 4, 4, 6, 6, 1, 2, 3, 4, 5, 6])
        )
        assert said == (
            "With 0.9 of the next item's words shown instead of none, NDCG@10 goes from 0.2000 to "
            "0.6000 (RecFormer), from 0.1000 to 0.6000 (JEPA4Rec); 0.1 of them change it by +0.0 % "
            "(RecFormer), +100.0 % (JEPA4Rec)."
        )

    def test_the_papers_figures_stand_beside_and_in_the_plots(self, tmp_path):
        found = comparison_of("zero_shot", tmp_path, (3,), published="Scientific")
        write_report(found, tmp_path)
        text = (tmp_path / "comparison.md").read_text()
        assert "## Beside the paper" in text and "0.0896" in text
        assert {each["label"] for each in found["rows"]} >= {"SASRec [trained]"}
        assert "in the paper & 0.1305 & 0.0797" in (tmp_path / "comparison.tex").read_text()
        bars = next(each for each in comparison_plots(found) if each["title"] == "NDCG@10")
        assert bars["figure"]["data"][1]["x"] == [0.0797, 0.0897, 0.0896]
        assert pretraining_lines(found["experiment"]) == [
            "Pre-trained on other, more, which costs here leave out: UniSRec zero-shot in 3 s a "
            "seed, RecFormer zero-shot in 3 s a seed, JEPA4Rec zero-shot in 3 s a seed."
        ]


class TestRows:
    def test_sources_are_pretrained_on_one_by_one_and_together(self):
        rows = rows_of(read_experiment("pretraining_sources"))
        assert [(each.name, each.sources) for each in rows] == [
            ("JEPA4Rec:none", ()),
            ("JEPA4Rec:other", ("other",)),
            ("JEPA4Rec:more", ("more",)),
            ("JEPA4Rec:other+more", ("other", "more")),
        ]
        one = rows_of(read_experiment("pretraining_sources"), sources=("other",))
        assert [each.name for each in one] == ["JEPA4Rec:none", "JEPA4Rec:other"]

    def test_pretraining_is_shared_unless_a_row_changes_it(self, shops):
        words = [*shops, "--experiment=revealed_words", "--pretrain_dataset=other,shop"]
        request = read_request([*words, "--seeds=1,2", "--model_list=JEPA4Rec:smoke"])
        folders = [cell.folder.as_posix() for cell in request.pretraining]
        assert folders == [
            f"out/pretraining/JEPA4Rec+smoke+on+other+shop/seed-{seed}" for seed in (1, 2)
        ]
        assert {cell.settings["checkpoint"] for cell in request.cells} == {*folders}
        assert {cell.settings["epochs"] for cell in request.cells} == {0}
        ablations = [*shops, "--experiment=ablations", "--pretrain_dataset=other"]
        assert len(read_request(ablations).pretraining) == 4

    def test_without_sources_a_model_is_pretrained_on_the_data_set(self, shops):
        request = read_request([*shops, "--experiment=low_resource", "--model_list=JEPA4Rec"])
        assert request.pretraining == ()
        assert {cell.settings["train_stage"] for cell in request.cells} == {"both"}
        found = [cell.settings["train_fraction"] for cell in request.cells]
        assert found == [0.01, 0.05, 0.1, 0.5, 1.0]


class TestRefusals:
    def test_two_files_of_one_name(self, shops, capsys):
        Path("a").mkdir()
        for file in ("x.yaml", "a/x.yaml"):
            Path(file).write_text("eval_step: 2\n")
        words = [*shops, "--experiment=low_resource", "--model_list=STAR:x.yaml,STAR:a/x.yaml"]
        assert main(words) == 2
        assert "of which both rows would be 'STAR:x:train_fraction=0.01'" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["zeroshot"], "unknown experiment 'zeroshot' (did you mean 'zero_shot'?)"),
            (["zero_shot"], "starts from pre-trained models (write --pretrain_dataset=A,B"),
            (["zero_shot", "--pretrain_dataset=shop"], "names 'shop', the data set itself"),
            (["zero_shot", "--pretrain_dataset=othr"], "no data set 'othr'"),
            (["ablations", "--model_list=SASRec"], "does not apply to SASRec (allowed: JEPA4Rec, "),
            (
                ["mask_ratio", "--model_list=STAR"],
                "does not apply to STAR (allowed: JEPA4Rec, RecF",
            ),
            (["low_resource", "--train_fraction=0.5"], "'train_fraction' is what experiment"),
            (["low_resource", "--reference=SASRec"], "reference 'SASRec' is not in experiment"),
            (
                ["zero_shot", "--checkpoint=sas", "--model_list=JEPA4Rec"],
                "checkpoint 'sas' is of SASRec, which reads no item text; allowed for experiment",
            ),
            (
                ["zero_shot", "--checkpoint=sas", "--pretrain_dataset=other"],
                "pretrain_dataset and checkpoint are both given; allowed: one of them",
            ),
            (["revealed_words", "--checkpoint=no"], "checkpoint 'no' is neither a file nor holds"),
            (["ablations", "--checkpoint=sas"], "'sas' is trained already, and experiment 'ablat"),
            (["mask_ratio", "--checkpoint=sas"], "and experiment 'mask_ratio' is about pre-train"),
            (["low_resource", "--checkpoint=sas", "--model_list=STAR"], "'sas' has no effect"),
            (["pretraining_sources", "--checkpoint=sas"], "is trained already, and experiment"),
        ],
    )
    def test_one_line_and_nothing_runs(self, words, message, shops, capsys):
        Path("sas").mkdir()
        Path("sas/config.yaml").write_text("model: SASRec\n")
        assert main([*shops, f"--experiment={words[0]}", *words[1:]]) == 2
        out, error = capsys.readouterr()
        assert error.startswith("error: ") and error.count("\n") == 1
        assert message in error and out == "" and not Path("out").exists()

    def test_sources_without_an_experiment(self, shops, capsys):
        assert main([*shops, "--model_list=STAR", "--pretrain_dataset=other"]) == 2
        assert "pretrain_dataset is of an experiment" in capsys.readouterr().err


def test_zero_shot_from_one_data_set_to_another(shops, capsys):
    words = [*shops, "--experiment=zero_shot", "--pretrain_dataset=other"]
    words += ["--model_list=JEPA4Rec,Popularity"]
    assert main(words) == 0
    found = json.loads(Path("out/comparison.json").read_text())
    assert [each["status"] for each in found["rows"]] == ["finished"] * 2
    assert found["experiment"]["rows"]["JEPA4Rec:zero-shot"]["pretrained_on"] == ["other"]
    result = json.loads(Path("out/JEPA4Rec+zero-shot/seed-2020/result.json").read_text())
    assert result["pretrain_datasets"] == ["other"] and result["epochs"] == 0
    assert holds(found).startswith("Never trained on shop, JEPA4Rec zero-shot reaches NDCG@10 0.")
    capsys.readouterr()
    assert main(words) == 0
    assert "3 runs in out, 3 of them finished before" in capsys.readouterr().err
    assert command(["report", "out/comparison.json", "--out=again"]) == 0
    for kind in ("html", "md", "tex"):
        assert (
            Path(f"again/comparison.{kind}").read_text()
            == Path(f"out/comparison.{kind}").read_text()
        )
