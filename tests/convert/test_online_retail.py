"""Online Retail: the published counts from raw rows, in csv and workbook."""

import csv
import datetime
import random

import pytest

from recbole_jepa4rec.config.config import Config
from recbole_jepa4rec.data.atomic_files import read_atomic
from recbole_jepa4rec.data.dataset import SequentialTextDataset
from tests.convert.conftest import REAL_DATA, tables

COLUMNS = [
    "InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID",
    "Country",
]  # fmt: skip


def line(customer, code, description, invoice="1", quantity=1, date="12/1/2010 8:26"):
    return [invoice, code, description, quantity, date, 2.55, customer, "United Kingdom"]


def write(path, rows, encoding="utf-8"):
    with open(path, "w", newline="", encoding=encoding) as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return path


ROWS = [
    line("17850", "85123A", "WHITE HOLDER"),
    line("17850", "85123A", "WHITE HOLDER"),  # equal in all columns
    line("17850", "85123A", "WHITE HOLDER", quantity=-1),  # a cancellation stays
    line("17850", "85123A", "WHITE  HOLDER "),  # another description, the same code
    line("17850.0", "71053", "LANTERN £5", date="12/1/2010 8:27"),
    line("17850", "POST", "POSTAGE", date="12/1/2010 8:25"),
    line("", "71053", "LANTERN £5"),  # no customer
    line("13047", "71053", "LANTERN £5"),  # three rows: too few
    line("13047", "71053", "LANTERN £5", quantity=2),
    line("13047", "84879", "BIRD", quantity=2),
]
EXPECTED = (
    [
        ["17850", "POST", "1291191900"],
        ["17850", "85123A", "1291191960"],
        ["17850", "85123A", "1291191960"],
        ["17850", "85123A.2", "1291191960"],
        ["17850", "71053", "1291192020"],
    ],
    [
        ["85123A", "WHITE HOLDER"],
        ["85123A.2", "WHITE HOLDER"],
        ["71053", "LANTERN £5"],
        ["POST", "POSTAGE"],
    ],
)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "utf-8-sig"])
def test_the_papers_rule_on_csv(made, tmp_path, encoding):
    path = write(tmp_path / "data.csv", ROWS, encoding)
    inter, item, _ = made("online-retail", path, "--preset", "jepa4rec")
    assert (inter, item) == EXPECTED


def test_a_workbook_gives_the_same(made, tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.append(COLUMNS)
    for row in ROWS:
        cells = [cell or None for cell in row]
        cells[0], cells[6] = int(row[0]), float(row[6]) if row[6] else None
        cells[4] = datetime.datetime.strptime(row[4], "%m/%d/%Y %H:%M")
        book.active.append(cells)
    book.save(tmp_path / "Online Retail.xlsx")
    words = ("online-retail", tmp_path / "Online Retail.xlsx", "--preset", "jepa4rec")
    assert made(*words)[:2] == EXPECTED


def test_unisrecs_users_are_invoices_and_items_codes(made, tmp_path):
    rows = [line("", f"c{i}", f"thing {i}", invoice=f"i{u}") for u in range(5) for i in range(5)]
    path = write(tmp_path / "data.csv", [*rows, line("9", "c0", "thing, too", invoice="i0")])
    inter, item, _ = made("online-retail", path, "--preset", "unisrec")
    assert len(inter) == 26 and {row[0] for row in inter} == {f"i{u}" for u in range(5)}
    assert item == [[f"c{i}", f"thing {i}"] for i in range(5)]


def test_days_first_need_their_format(made, run, tmp_path):
    path = write(tmp_path / "data.csv", [line("1", "c", "d", date="13/01/2011 08:26")])
    status, _, errors = run("online-retail", path)
    assert status == 2 and "data.csv, line 2: expected InvoiceDate as" in errors
    assert "online-retail read other forms by --time-format" in errors
    inter, _, _ = made("online-retail", path, "--time-format", "%d/%m/%Y %H:%M")
    assert inter == [["1", "c", "1294907160"]]


@pytest.mark.realdata
def test_the_published_counts_exactly(made, tmp_path):
    """Raw rows that give the atomic files, among rows that the rule must drop."""
    folder = REAL_DATA / "online-retail"
    if not folder.is_dir():
        pytest.skip(f"there is no {folder}")
    inter = read_atomic(folder / "online-retail.inter", as_text=True).to_numpy().tolist()
    titles = dict(read_atomic(folder / "online-retail.item").astype(str).to_numpy().tolist())
    descriptions = distinct_descriptions(titles)
    rows = []
    for number, (user, item, time) in enumerate(inter):
        date = datetime.datetime.fromtimestamp(float(time), datetime.timezone.utc)
        code = item.partition(".")[0]
        rows.append(
            line(user, code, descriptions[item], str(number), 1, f"{date:%Y-%m-%d %H:%M:%S}")
        )
    noise = random.Random(0)
    rows += [list(noise.choice(rows)) for _ in range(5000)]  # equal in all columns
    rows += [[*row[:6], "", row[7]] for row in noise.sample(rows, 100_000)]  # no customer
    rows += [line(f"9{n % 50:04}", "x", f"rare {n}", f"f{n}") for n in range(150)]  # three rows
    path = write(tmp_path / "data.csv", rows)
    words = ("online-retail", path, "--preset", "jepa4rec")
    _, _, statistics = made(*words, out="online-retail")
    counts = statistics["statistics"]
    assert (counts["users"], counts["items"], counts["interactions"]) == (4181, 3896, 401248)
    assert [statistics["published"]["relative"][key] for key in list(counts)[:3]] == [0, 0, 0]
    ours, items, _ = tables(tmp_path / "online-retail")
    assert ours == inter and dict(items) == titles
    config = {"data_path": str(tmp_path)}
    loaded = SequentialTextDataset(Config("Markov", "online-retail", config_dict=config))
    assert loaded.fingerprint == statistics["fingerprint"]


def distinct_descriptions(titles):
    """Descriptions that differ where titles do not: by blanks at their end."""
    used, descriptions = {}, {}
    for item, title in titles.items():
        descriptions[item] = title + " " * used.setdefault(title, 0)
        used[title] += 1
    return descriptions
