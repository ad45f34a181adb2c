"""The views of a comparison: escaped, whole, and drawn in a browser."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from recbole_jepa4rec.study import report
from recbole_jepa4rec.study.comparison import compare
from recbole_jepa4rec.study.figures import COLORS, SYMBOLS, styles
from recbole_jepa4rec.study.report import escape_latex, escape_markdown, write_report
from recbole_jepa4rec.study.wording import VECTORS, amount, headline, out_of_time, p_value
from tests.handmade_runs import row

LABELS = {
    "JEPA4Rec": "JEPA4Rec (one random target)",
    "Popularity": "Popularity",
    "SASRec-CE": "SASRec-CE",
    "UniSRec": "UniSRec (all-MiniLM-L6-v2, inductive)",
    "Odd": "<b>&_|\"'</script>{{ 7 * 7 }}",
}


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    rows = []
    for i, (entry, label) in enumerate(LABELS.items()):
        ranks = [[1 + (user * (i + 2) + seed) % 30 for user in range(60)] for seed in (0, 1)]
        counts = [user % 8 for user in range(60)]
        time = {"load": 1, "pretrain": 0, "finetune": 10**i / 100, "evaluate": 1, "total": 5}
        options = {"label": label, "counts": counts, "seconds": time, "valid": 0.1 * i}
        options["settings"] = {
            "max_train_seconds": 2.5 if i in (0, 3) else 60,
            "metrics": ["Recall", "NDCG", "average_popularity"],
        }
        options["lists"] = {"average_popularity@10": 12.3456 + i}
        steps = {"cosine": [0.8765, 0.5], "recall@10": [0.1234, 0.25]}
        options["drift"] = {"latent, none": steps, "text": steps} if i == 1 else {}
        if i == 3:
            options["drift"] = {"text": {"cosine": [0.7654], "recall@10": [0.4321]}}
        options["vectors"] = dict.fromkeys(VECTORS, 0.6543 + i) if i else None
        options["text_fingerprint"] = "0a" * 8 if i in (0, 3) else None
        rows.append(row(folder, entry, *ranks, **options))
    rows.append(row(folder, "Gone", errors=["out of <i>memory</i> & 50 % of time_limit", "again"]))
    found = compare(rows, "JEPA4Rec", "online-retail", {"epochs": 3}, "run `it` <now>")
    return json.loads(json.dumps(found))


@pytest.fixture(scope="module")
def folder(comparison, tmp_path_factory):
    """The three views."""
    folder = tmp_path_factory.mktemp("views")
    write_report(comparison, folder)
    return folder


class Page(HTMLParser):
    """Tags, texts and references of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.loaded = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loaded += [v for k, v in attributes if k in ("src", "href", "srcset", "data")]

    def handle_data(self, data):
        self.texts.append(data)


def without_plotly(text):
    bundle = report.basic_plotly()
    assert text.count(bundle) == 1
    return text.replace(bundle, "")


class TestHtml:
    def test_labels_and_errors_are_text(self, folder):
        text = without_plotly((folder / "comparison.html").read_text())
        page = Page(text)
        assert LABELS["Odd"] in page.texts
        assert not {"b", "i"} & set(page.tags) - {"b"}
        assert "<b>&" not in text
        assert text.count("</script>") == page.tags.count("script") == 3
        assert any("out of <i>memory</i> & 50 %" in each for each in page.texts)

    def test_it_needs_no_network(self, folder):
        text = without_plotly((folder / "comparison.html").read_text())
        assert Page(text).loaded == ["data:,"]
        assert not re.findall(r"url\(|@import|https?://", text)

    def test_it_is_small(self, folder):
        assert (folder / "comparison.html").stat().st_size < 1.5e6

    def test_every_row_is_there_with_its_numbers(self, folder, comparison):
        text = without_plotly((folder / "comparison.html").read_text())
        table = text.split("<tbody>")[1].split("</tbody>")[0]
        assert table.count("<tr") == len(comparison["rows"])
        for each in comparison["rows"][:-1]:
            for metric in each["test"].values():
                assert f"{metric['mean']:.4f}" in table
        assert text.count("Average popularity@10</button>") == 1
        assert "Average popularity@10" not in text.split('id="significance"')[1].split("<tbody>")[0]
        assert "failed, 0 of 2 seeds" in table

    def test_item_vectors_are_there_where_a_model_has_them(self, folder):
        table = (folder / "comparison.html").read_text().split('id="vectors"')[1]
        table = table.split("</section>")[0]
        assert table.count(">1.6543<") == len(VECTORS) == table.count("</button>") - 1
        assert "JEPA4Rec" not in table and "SASRec-CE" in table

    def test_the_drift_of_rollouts_is_there_where_it_is_measured(self, folder):
        part = (folder / "comparison.html").read_text().split('id="drift"')[1]
        part = part.split("</section>")[0]
        assert part.count(">0.8765<") == part.count(">0.1234<") == 2
        assert "SASRec-CE" not in part and "Popularity" in part
        text = (folder / "comparison.md").read_text().split("## Drift")[1].split("## Data")[0]
        assert "| Popularity | text | 0.1234 ± 0.0000 | 0.2500 ± 0.0000 |" in text
        assert "| text | 0.4321 ± 0.0000 | – |" in text

    def test_one_colour_a_model(self, folder, comparison):
        text = (folder / "comparison.html").read_text()
        plots = json.loads(text.split('id="figures">')[1].split("</script>")[0])
        style = styles(comparison)
        assert len(plots) == len(comparison["metrics"]) + 6
        for trace in (trace for plot in plots for trace in plot["figure"]["data"]):
            found = (trace.get("marker") or trace["line"])["color"]
            expected = [style[entry]["color"] for entry in trace["meta"]]
            assert found in (expected, expected[0])
            assert "<b>" not in trace.get("name", "")

    def test_styles_are_distinct_and_lead_with_the_reference(self):
        rows = [{"entry": str(i)} for i in range(30)]
        style = styles({"rows": rows, "reference": "7"})
        assert len({(each["color"], each["symbol"]) for each in style.values()}) == 30
        assert style["7"] == {"color": COLORS[0], "symbol": "circle", "sign": SYMBOLS["circle"]}


class TestMarkdown:
    def test_tables_have_as_many_cells_as_columns(self, folder):
        lines = (folder / "comparison.md").read_text().splitlines()
        tables = "\n".join(lines).split("\n\n")
        tables = [each.splitlines() for each in tables if each.startswith("|")]
        assert len(tables) == 10
        for table in tables:
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1, table

    def test_marks_and_escapes(self, folder):
        text = (folder / "comparison.md").read_text()
        assert re.search(r"\| \*\*0\.\d{4} ± 0\.\d{4}\*\* \|", text)
        assert re.search(r"\| <ins>0\.\d{4} ± 0\.\d{4}</ins> \|", text)
        assert escape_markdown(LABELS["Odd"]) in text
        assert "<b>" not in text
        assert "Gone, seed 1, failed: out of" in text

    def test_escaping(self):
        assert escape_markdown("a|b\n_c_") == r"a\|b \_c\_"


class TestLatex:
    def test_every_special_sign(self):
        assert escape_latex("a_b & 50 % #1 $x ~y ^z {w} \\v <u>") == (
            r"a\_b \& 50 \% \#1 \$x \textasciitilde{}y \textasciicircum{}z \{w\} "
            r"\textbackslash{}v \textless{}u\textgreater{}"
        )

    def test_braces_balance_and_rows_are_whole(self, folder, comparison):
        text = (folder / "comparison.tex").read_text()
        bare = re.sub(r"\\[\\{}&%]", "", text)
        assert bare.count("{") == bare.count("}")
        rows = [line for line in text.splitlines() if line.endswith(r"\\")]
        assert len(rows) == 1 + len(comparison["rows"]) + 1
        for line in rows:
            assert len(re.findall(r"(?<!\\)&", line)) == len(comparison["metrics"])
        assert r"\textbf{0." in text and r"\underline{0." in text
        assert r"\label{tab:online-retail}" in text
        assert r"Gone, seed 1, failed: out of \textless{}i\textgreater{}" in text
        assert r"\toprule" in text and r"\bottomrule" in text

    def test_baselines_that_are_beaten_are_starred(self, comparison, tmp_path):
        tests = [
            {**test, "p_holm": 0.01 if test["baseline"] == "Odd" else 0.05}
            for test in comparison["tests"]
        ]
        write_report({**comparison, "tests": tests}, tmp_path)
        lines = (tmp_path / "comparison.tex").read_text().splitlines()
        starred = [line for line in lines if r"}^{\ast}$" in line]
        assert len(starred) == 1 and escape_latex(LABELS["Odd"]) in starred[0]
        assert starred[0].count(r"}^{\ast}$") == len(comparison["user_metrics"])

    @pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not installed")
    def test_it_compiles(self, folder, tmp_path):
        page = r"""\documentclass{article}
            \usepackage[T1]{fontenc}
            \usepackage{booktabs,graphicx}
            \begin{document}\input{comparison.tex}\end{document}"""
        (tmp_path / "page.tex").write_text(page)
        shutil.copy(folder / "comparison.tex", tmp_path)
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
        ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stdout
        assert "Overfull" not in ended.stdout


class TestWords:
    def test_the_headline_says_who_and_by_how_much(self, comparison):
        first, second = headline(comparison)
        ours = comparison["rows"][0]["test"]["ndcg@10"]["mean"]
        assert first.startswith(
            f"On online-retail, {LABELS['JEPA4Rec']} reaches NDCG@10 {ours:.4f}"
        )
        assert first.endswith(f"{LABELS['Odd']}, the best baseline on validation.")
        assert "60 users" in second

    @pytest.mark.parametrize(
        ("difference", "p", "says"),
        [
            (0.1, 1e-9, "is significant (p < 0.0001"),
            (0.1, 0.3, "may be chance (p = 0.30"),
            (-0.1, 1.0, "Nothing here says that JEPA4Rec (one random target) is better (p = 1.00"),
        ],
    )
    def test_the_verdict(self, comparison, difference, p, says):
        changed = {"difference": difference, "p_holm": p}
        tests = [{**test, **changed} for test in comparison["tests"]]
        assert says in headline({**comparison, "tests": tests})[1]

    @pytest.mark.parametrize(
        ("mine", "theirs", "says"),
        [
            ([50, 50], [50, 50], "reaches NDCG@10 0.0000 on the test split, the same as B, the"),
            ([1, 2], [1, 2], "on the test split, the same as B, the best baseline"),
            ([1, 2], [50, 50], "on the test split, above B, the best baseline"),
            ([1, 1], [3, 3], "on the test split, 100.0 % above B, the best baseline"),
            ([3, 3], [1, 1], "on the test split, 50.0 % below B, the best baseline"),
        ],
    )
    def test_where_the_reference_stands(self, tmp_path, mine, theirs, says):
        rows = [row(tmp_path, "A", mine, label="A"), row(tmp_path, "B", theirs, label="B")]
        assert says in headline(compare(rows, "A", "toy", {}, "it"))[0]

    def test_rows_whose_training_used_up_its_time(self, folder, comparison):
        (line,) = out_of_time(comparison)
        names = f"{LABELS['JEPA4Rec']}; {LABELS['UniSRec']}"
        assert line == (
            "Training used up max_train_seconds (2.5 s), and with more time the figures may be "
            f"others: {names}."
        )
        for kind, escape in (("md", escape_markdown), ("tex", escape_latex), ("html", str)):
            assert escape(line) in (folder / f"comparison.{kind}").read_text()

    def test_the_item_text_is_named(self, folder):
        for kind in ("md", "html"):
            assert "0a" * 8 in (folder / f"comparison.{kind}").read_text()

    def test_numbers(self):
        assert [p_value(p) for p in (1e-5, 0.0123, 0.5)] == ["< 0.0001", "0.0123", "0.50"]
        assert [amount(x) for x in (None, 11041, 6.96, 1234.5, 0.00131)] == [
            "–",
            "11,041",
            "6.96",
            "1,234",
            "0.00131",
        ]


def test_views_of_a_comparison_without_results(tmp_path):
    rows = [row(tmp_path / "runs", name, errors=["no luck"]) for name in "AB"]
    write_report(json.loads(json.dumps(compare(rows, "A", "toy", {}, "it"))), tmp_path)
    for kind in ("md", "tex", "html"):
        text = (tmp_path / f"comparison.{kind}").read_text()
        assert "no luck" in text and ("no complete result" in text or kind == "tex")


def test_templates_are_beside_the_module():
    names = {path.name for path in (Path(report.__file__).parent / "templates").iterdir()}
    bundle = {"plotly-basic.min.js.gz", "plotly-basic.LICENSE"}
    pages = {f"{name}.html" for name in ("page", "parts", "comparison", "runs", "search")}
    assert names == {*pages, "page.css", "page.js", *bundle, "comparison.md", "comparison.tex"}


@pytest.fixture
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("chromium or chromedriver is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for word in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.add_argument("--disable-background-networking")
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield found
    found.quit()


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
class TestBrowser:
    @pytest.fixture
    def page(self, browser, folder, width, scheme):
        from selenium.webdriver.support.wait import WebDriverWait

        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get((folder / "comparison.html").as_uri())
        WebDriverWait(browser, 30).until(
            lambda page: page.execute_script("return document.body.dataset.drawn")
        )
        return browser

    def test_the_page(self, page, width, scheme, comparison, tmp_path):
        self.every_plot_is_drawn(page, comparison)
        self.everything_fits(page, width)
        self.a_header_sorts_by_click_and_key(page)
        self.the_legend_hides_a_model(page)
        self.figures_are_saved(page, tmp_path, comparison)
        dark = page.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (dark == "rgb(21, 24, 28)") == (scheme == "dark")
        assert page.get_log("browser") == []

    def every_plot_is_drawn(self, page, comparison):
        drawn = page.execute_script(
            "return [...document.querySelectorAll('.plot')].map(plot => plot.querySelectorAll("
            "'svg .trace path, svg .points path, svg .scatterlayer path').length)"
        )
        assert len(drawn) == len(comparison["metrics"]) + 4
        assert min(drawn) >= 4

    def everything_fits(self, page, width):
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        clipped = page.execute_script(
            "return [...document.querySelectorAll('.plot')].flatMap(plot => {"
            " const box = plot.getBoundingClientRect();"
            " return [...plot.querySelectorAll('svg text')].filter(text => {"
            "  const b = text.getBoundingClientRect();"
            "  return b.width && (b.left < box.left - 1 || b.right > box.right + 1"
            "   || b.top < box.top - 1 || b.bottom > box.bottom + 1);"
            " }).map(text => text.textContent); })"
        )
        assert clipped == []

    def a_header_sorts_by_click_and_key(self, page):
        header = page.find_element("css selector", ".sortable th.number")
        button = header.find_element("tag name", "button")

        def state():
            values = page.execute_script(
                "return [...document.querySelector('.sortable').tBodies[0].rows]"
                ".map(row => row.cells[1].dataset.value)"
            )
            return header.get_attribute("aria-sort"), values

        name, values = state()
        numbers = [float(value) for value in values if value]
        assert name == "none" and numbers != sorted(numbers, reverse=True)
        button.click()
        falling = [value for value in state()[1] if value]
        assert state()[0] == "descending" and state()[1][-1] == ""
        assert [float(v) for v in falling] == sorted(numbers, reverse=True)
        button.send_keys("\ue007")
        assert state()[0] == "ascending"
        assert [float(v) for v in state()[1] if v] == sorted(numbers)

    def figures_are_saved(self, page, folder, comparison):
        from selenium.webdriver.support.wait import WebDriverWait

        to_here = {"behavior": "allow", "downloadPath": str(folder)}
        page.execute_cdp_cmd("Browser.setDownloadBehavior", to_here)
        for button in page.find_elements("css selector", ".plots figure:last-child .export button"):
            page.execute_script("arguments[0].click()", button)
        name = "Cold and warm targets"
        svg, png = folder / f"{name}.svg", folder / f"{name}.png"
        WebDriverWait(page, 30).until(lambda _: svg.exists() and png.exists())
        drawing = svg.read_text()
        assert "Popularity" in drawing and "JEPA4Rec" not in drawing  # which the legend hides
        assert "rgb(255, 255, 255)" in drawing and "fill: rgb(93, 101, 110)" in drawing
        assert png.read_bytes()[:4] == b"\x89PNG" and png.stat().st_size > 10_000

    def the_legend_hides_a_model(self, page):
        count = "return document.querySelectorAll('.plot:last-of-type .scatterlayer .trace').length"
        before = page.execute_script(count)
        button = page.find_element("css selector", ".legend button")
        page.execute_script("arguments[0].click()", button)
        assert button.get_attribute("aria-pressed") == "false"
        assert page.execute_script(count) < before
