"""What every model must do, ours and RecBole's: a suite that each model's test inherits."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from recbole.data.utils import create_samplers, get_dataloader

from recbole_jepa4rec.base.checkpoint import load_weights, save_weights
from recbole_jepa4rec.config.config import Config
from recbole_jepa4rec.config.registry import find_dataset
from recbole_jepa4rec.runner.quick_start import run
from recbole_jepa4rec.runner.recommender import load
from recbole_jepa4rec.runner.retriever import make_model, retriever_for

SMALL = {
    "data_path": "dataset",
    "use_gpu": False,
    "show_progress": False,
    "MAX_ITEM_LIST_LENGTH": 10,
    "train_batch_size": 32,
}


def training_batch(part: Any) -> Any:
    """The first 64 rows as the model's own loader gives them: with masks or sampled negatives."""
    config = part.config
    sampler = create_samplers(config, part, [part] * 3)[0]
    loader = get_dataloader(config, "train")(config, part, sampler, shuffle=False)
    return loader.collate_fn(torch.arange(64))


def made(config: Any, part: Any) -> Any:
    """A new model for the training part of a data set."""
    return make_model(config, part, retriever_for(config, Path(), part)).eval()


class ModelContract:
    """Subclass it as ``TestX`` with ``model = "X"`` and settings that make X small."""

    model: str
    settings: ClassVar[dict[str, Any]] = {}
    learns = True
    """Whether the model has a loss to lower."""

    @pytest.fixture(scope="class")
    @classmethod
    def config(cls, tmp_path_factory):
        cache = str(tmp_path_factory.mktemp("cache"))
        given = {**SMALL, "cache_dir": cache, "epochs": 3, **cls.settings}
        return Config(cls.model, "toy", config_dict=given)

    @pytest.fixture(scope="class")
    @classmethod
    def parts(cls, config):
        parts = find_dataset(config.model_class)(config).build()
        training_batch(parts[0])  # RecBole's loader names columns that the model then looks up
        return parts

    @pytest.fixture
    def net(self, config, parts):
        torch.manual_seed(5)
        return made(config, parts[0])

    @pytest.fixture
    def rows(self, parts):
        return parts[2].inter_feat[0:12]

    @pytest.fixture(scope="class")
    @classmethod
    def result(cls, tmp_path_factory):
        folder = tmp_path_factory.mktemp("runs")

        def call(name, **settings):
            given = {**SMALL, "epochs": 3, "cache_dir": str(folder), **cls.settings}
            given["run_dir"] = str(folder / name)
            return run(cls.model, "toy", config_dict={**given, **settings})

        return call

    @pytest.fixture(scope="class")
    @classmethod
    def first(cls, result):
        """A run of the model, which several tests look at."""
        return result("first")

    def test_loss_is_finite_and_falls(self, net, parts):
        if not self.learns:
            pytest.skip("has no loss")
        batch = training_batch(parts[0])
        torch.manual_seed(1)
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        net.train()
        values = []
        for _ in range(12):
            losses = net.calculate_loss(batch)
            loss = sum(losses) if isinstance(losses, tuple) else losses
            values.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert all(torch.isfinite(torch.tensor(values)))
        assert min(values[-3:]) < 0.95 * values[0]

    @torch.no_grad()
    def test_scores_cover_every_item_and_predict_agrees(self, net, parts, rows):
        scores = net.full_sort_predict(rows).view(len(rows), -1)
        assert scores.shape == (len(rows), parts[0].item_num)
        torch.testing.assert_close(
            net.predict(rows),
            scores.gather(1, rows["item_id"][:, None])[:, 0],
            atol=1e-4,
            rtol=1e-4,
        )

    @torch.no_grad()
    def test_a_row_s_scores_do_not_depend_on_the_other_rows(self, net, parts, rows):
        together = net.full_sort_predict(rows).view(len(rows), -1)
        alone = net.full_sort_predict(parts[2].inter_feat[3:4]).view(1, -1)
        torch.testing.assert_close(together[3:4], alone, atol=1e-5, rtol=1e-4)

    def test_saved_weights_give_the_same_scores(self, net, config, parts, rows, tmp_path):
        save_weights(net, tmp_path / "model.safetensors")
        torch.manual_seed(99)
        again = made(config, parts[0])
        load_weights(again, tmp_path / "model.safetensors")
        with torch.no_grad():
            assert torch.equal(net.full_sort_predict(rows), again.full_sort_predict(rows))

    def test_the_same_seed_gives_the_same_run(self, first, result):
        """However many histories an evaluation ranks at once."""
        again = result("again", eval_batch_size=3)
        for part in ("valid", "test"):
            assert again[part] == pytest.approx(first[part], abs=1e-6)

    def test_a_run_folder_recommends(self, first):
        recommender = load(Path(first["path"]).parent)
        found = recommender.recommend([recommender.item_ids[1:4]], k=5)
        assert found["rank"].tolist() == [1, 2, 3, 4, 5]
