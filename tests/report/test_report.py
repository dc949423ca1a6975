"""The report: one file that holds all, shows what is missing, and in which data stays data."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from detoxbench.cli import main
from detoxbench.errors import DetoxbenchError
from detoxbench.report import content, report
from detoxbench.report.build import HERE, LOOKS
from detoxbench.report.content import default_axes
from detoxbench.report.drawing import COLOURS, GREY, MARKS, STYLE
from detoxbench.report.plots import plots
from detoxbench.report.samples import for_script, spread
from detoxbench.results import paper
from tests.support.report_runs import HOSTILE, NAME, build, level, share, texts
from tests.support.stored import write


class Page(HTMLParser):
    """The elements of a page, its attributes, and what stands in its scripts and in its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._in = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._in = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._in = ""

    def handle_data(self, data):
        if self._in == "script":
            self.scripts[-1] += data
        elif self._in != "style":
            self.text += data


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return build(tmp_path_factory.mktemp("report") / "runs")


@pytest.fixture(scope="module")
def written(runs):
    return report(runs, runs.parent / "report.html")


@pytest.fixture(scope="module")
def page(written):
    return written.page.read_text()


@pytest.fixture(scope="module")
def data(page):
    return json.loads(Page(page).scripts[0])


def test_every_row_says_how_near_its_method_is_to_what_was_published(page):
    lines = [attributes["title"] for tag, attributes in Page(page).tags if tag == "span" and "title" in attributes]
    assert lines.count(f"ours ({HOSTILE[2]})") == 1, "as text, whatever it holds"
    assert lines.count("not said") == 6, "runs that are older than the line"


# --- data stays data --------------------------------------------------------------------------------------------------


def test_what_models_wrote_and_what_plugins_are_called_never_becomes_markup(page, data):
    found = Page(page)
    assert len(found.scripts) == 2  # the data and the page's own
    assert "img" not in {tag for tag, _ in found.tags}
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
    assert "window.hacked" not in found.scripts[1]
    assert "<img src=x onerror='window.hacked=1'>\ufffd" in found.text, "shown as text, direction marks replaced"
    said = {text for section in data["sections"] for text in section["samples"]["texts"]}
    assert set(HOSTILE) <= said, "and nothing of it is lost"


@pytest.mark.parametrize("text", [*HOSTILE, NAME, "\u2029", "\x7f", "é 😀", "\\u003c"])
def test_json_in_a_script_element_cannot_end_it(text):
    encoded = for_script({"text": text})
    assert not set("<>&\u2028\u2029") & set(encoded)
    assert json.loads(encoded) == {"text": text}


def test_the_page_names_no_address_and_allows_none(page):
    addresses = set(re.findall(r"[a-z]+://[^\s\"'`]*", page))
    assert addresses == {"http://www.w3.org/2000/svg"}, "the name of SVG is no address"
    found = Page(page)
    (policy,) = (a["content"] for tag, a in found.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "'self'" not in policy, "without a side file nothing beside the page can be loaded"
    assert not [a for _, a in found.tags if "src" in a or not (a.get("href") or "#").startswith("#")]
    assert "style" not in {name for _, attributes in found.tags for name in attributes}, "it would be refused"


# --- what is in it ----------------------------------------------------------------------------------------------------


def test_the_same_runs_give_the_same_bytes(runs, written, tmp_path):
    assert report(runs, tmp_path / "again.html").page.read_bytes() == written.page.read_bytes()


def test_what_is_missing_is_shown_as_missing(page, data):
    (section,) = (s for s in data["sections"] if s["suite"] == "mechanism")
    row = next(r for r in section["rows"] if r["method"] == "destein")
    assert row["cells"][NAME]["value"] is None
    text = Page(page).text
    assert "24 missing" in text
    assert re.search(r"–\s*missing", text)


def test_sweeps_categories_layers_and_fits_are_found(runs):
    found = content.read_content(runs)
    mechanism, rtp = found.sections
    assert (mechanism.table.suite, rtp.table.suite) == ("mechanism", "rtp")
    (sweep,) = rtp.sweeps
    assert (sweep.method, sweep.knob, sweep.values) == ("destein", "alpha", [0.2, 0.4, 0.6])
    assert [rtp.table.rows[i].label for i in sweep.rows] == [f"destein alpha={a}" for a in (0.2, 0.4, 0.6)]
    (categories,) = rtp.groups
    assert (categories.metric, categories.kind, categories.parts) == ("EMT", "category", ["on_harsh", "on_mild"])
    base = next(i for i, row in enumerate(rtp.table.rows) if row.label == "none")
    assert categories.cells[base][0].value == pytest.approx(0.8 * 1.2 * 1.2, rel=0.05)
    (layers,) = mechanism.groups
    assert (layers.metric, layers.kind, layers.parts) == ("cosine", "layer", ["layer_0", "layer_1", "layer_2"])
    # Three alphas recorded the same lists: they are told once.
    assert {(c.name, c.kind, len(c.labels)) for c in found.curves} == {
        ("losses", "step", 3),
        ("probe_accuracy", "layer", 3),
    }
    assert found.methods[0] == "none"
    x, y = default_axes(found, "tiny")
    assert (x.name, y.name) == ("DS", "perplexity")


def test_two_knobs_at_once_are_sweeps_of_one_with_the_other_fixed(tmp_path):
    for alpha in (1, 2):
        for steps in (5, 10):
            config = {"alpha": alpha, "steps": steps, "flag": True, "name": "x"}
            texts(write(tmp_path, [share("DS", 0.5)], "m", config=config), 0.1)
    (section,) = content.read_content(tmp_path).sections
    found = sorted((s.knob, s.fixed, s.values) for s in section.sweeps)
    assert found == [
        ("alpha", "steps=10", [1.0, 2.0]),
        ("alpha", "steps=5", [1.0, 2.0]),
        ("steps", "alpha=1", [5.0, 10.0]),
        ("steps", "alpha=2", [5.0, 10.0]),
    ]


def test_what_papers_report_stands_in_the_table_and_is_drawn_nowhere(tmp_path, monkeypatch):
    told = paper.Reported("tiny", "destein", "", "safeedit", "DS", 97.5, "percent", "Table 3")
    monkeypatch.setattr(paper, "reported", lambda: [told])
    texts(write(tmp_path / "runs", [share("DS", 0.5)]), 0.1)
    page = Page(report(tmp_path / "runs", tmp_path / "r.html", paper=True).page.read_text())
    assert "reported: Table 3" in page.text
    assert "97.5" in page.text
    (section,) = json.loads(page.scripts[0])["sections"]
    assert [section["rows"][i]["label"] for i in section["measured"]] == ["none"]


def test_models_and_scorers_of_one_suite_are_told_apart(tmp_path):
    for model, scorer in (("a", "s"), ("b", "s"), ("b", "t")):
        texts(write(tmp_path, [share("DS", 0.5)], model=model, scorer=scorer), 0.1)
    assert content.names(content.read_content(tmp_path)) == ["safeedit · a · s", "safeedit · b · s", "safeedit · b · t"]


# --- size -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_twenty_runs_stay_under_five_megabytes_and_the_rest_lies_beside(tmp_path):
    runs = tmp_path / "runs"
    records = [f"r{i}" for i in range(250)]
    for i in range(20):
        folder = write(runs, [share("DS", 0.5), level("EMT", 0.1 + i / 100)], "m" if i else "none", config={"alpha": i})
        texts(folder, 0.3, prompts=records, samples=2, voice=f", said run {i} at <&é length" * 16)
    done = report(runs, tmp_path / "report.html")
    assert done.page.stat().st_size < 5e6
    (side,) = done.side_files
    assert side.name == "report.samples-1.js"
    data = json.loads(Page(done.page.read_text()).scripts[0])
    (section,) = data["sections"]
    head = f'detoxbenchSamples(0, "{data["digest"]}", '
    beside = side.read_text()
    assert beside.startswith(head)
    assert beside.endswith(");\n")
    rest = json.loads(beside[len(head) : -3])
    inside = [r[1] for r in section["samples"]["requests"]]
    outside = [r[1] for r in rest["requests"]]
    assert sorted(inside + outside) == sorted(records), "every record is in one of the two"
    assert section["side_records"] == len(outside)
    assert all(len(outputs) == 20 * 2 for outputs in [*section["samples"]["outputs"], *rest["outputs"]])
    # Evenly spread: not the first ones only.
    assert int(inside[-1][1:]) > 240
    # With room for all, the file of another time goes.
    report(runs, tmp_path / "report.html", inside=50_000_000)
    assert not side.exists()


def test_what_even_the_side_file_has_no_room_for_is_counted(runs, tmp_path):
    done = report(runs, tmp_path / "report.html", inside=3000, beside=10_000)
    data = json.loads(Page(done.page.read_text()).scripts[0])
    for section in data["sections"]:
        assert section["records"] == 24
        assert len(section["samples"]["requests"]) + section["side_records"] < 24


@pytest.mark.parametrize("n", [0, 1, 5, 10, 12])
def test_spread(n):
    items = [str(i) for i in range(10)]
    found = spread(items, n)
    assert len(found) == min(n, 10)
    assert found == sorted(set(found), key=int)


# --- errors and the command line --------------------------------------------------------------------------------------


def test_the_command_writes_the_page_and_says_where(runs, tmp_path, capsys):
    assert main(["report", str(runs), "-o", str(tmp_path / "new" / "r.html")]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'new' / 'r.html'} (0.")


def test_a_report_of_some_of_the_runs(runs, tmp_path, capsys):
    asked = ["report", str(runs), "-o", str(tmp_path / "r.html"), "--suite"]
    assert main([*asked, "rt*, rtp"]) == 0
    (section,) = json.loads(Page((tmp_path / "r.html").read_text()).scripts[0])["sections"]
    assert section["suite"] == "rtp"
    assert main([*asked, "nothing"]) == 2
    assert "nothing" in capsys.readouterr().err


def test_what_cannot_be_reported_is_named(runs, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["report", str(tmp_path / "empty"), "-o", str(tmp_path / "r.html")]) == 1
    assert "no finished runs" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "nowhere")]) == 1
    assert main(["report", str(runs), "-o", str(tmp_path / "empty")]) == 1
    assert "is a folder" in capsys.readouterr().err
    folder = write(tmp_path / "torn", [share("DS", 0.5)])
    texts(folder, 0.1)
    with open(folder / "scores.jsonl", "ab") as file:
        file.write(b'{"id": ')
    with pytest.raises(DetoxbenchError, match=r"scores\.jsonl line 49 is cut off"):
        report(tmp_path / "torn", tmp_path / "r.html")
    (folder / "scores.jsonl").unlink()
    with pytest.raises(DetoxbenchError, match=rf"samples of run {folder.name} cannot be read"):
        report(tmp_path / "torn", tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


# --- looks ------------------------------------------------------------------------------------------------------------


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def test_page_and_print_tell_methods_apart_by_the_same_colours() -> None:
    style = (HERE / "style.css").read_text()
    light = [re.search(rf"--c{i}: light-dark\((#[0-9a-f]+),", style)[1] for i in range(LOOKS)]  # type: ignore[index]
    assert tuple(light) == COLOURS
    assert re.search(r"--base: light-dark\((#[0-9a-f]+),", style)[1] == GREY  # type: ignore[index]
    marks = (HERE / "script" / "marks.js").read_text()
    assert f"% {LOOKS}])" in marks
    assert len(re.findall(r"^  \d: \"M", marks, re.MULTILINE)) == LOOKS == len(MARKS)


def _contrast(a: str, b: str) -> float:
    light, dark = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_text_and_marks_have_the_contrast_that_wcag_aa_asks_for(dark):
    style = (HERE / "style.css").read_text()
    pairs = dict(re.findall(r"--([\w-]+): light-dark\(([^)]*)\)", style))
    colour = {name: pair.split(", ")[dark] for name, pair in pairs.items()}
    for name in ("ink", "muted", "accent", "better", "worse", "differs"):
        for ground in ("paper", "sheet"):
            assert _contrast(colour[name], colour[ground]) >= 4.5, (name, ground)
    for verdict in ("better", "worse", "differs"):
        assert _contrast(colour[verdict], colour[f"{verdict}-soft"]) >= 4.5, verdict
    assert _contrast(colour["ink"], colour["warn"]) >= 4.5
    assert _contrast(colour["ink"], colour["mark"]) >= 4.5
    for name in ("base", *(f"c{i}" for i in range(8))):
        assert _contrast(colour[name], colour["paper"]) >= 3, name


# --- figures ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_figures_for_print(runs, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setitem(STYLE, "savefig.dpi", 50)  # 300 takes its time
    done = plots(runs, tmp_path / "figures")
    names = {path.stem for path in done}
    assert {"metrics-rtp", "cost-rtp", "sweep-destein-alpha-rtp", "metrics-mechanism", "tradeoff-tiny"} <= names
    for path in done:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert "<script" not in path.with_suffix(".svg").read_text()
    assert "&lt;img src=x" in Path(tmp_path / "figures" / "metrics-rtp.svg").read_text(), "labels are text in the SVG"


def test_without_matplotlib_the_extra_is_named_before_anything_is_read(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["report", str(tmp_path / "nowhere"), "--plots", str(tmp_path)]) == 1
    assert "pip install 'detoxbench[plots]'" in capsys.readouterr().err


def test_each_seed_is_a_point_and_the_page_says_who_made_the_runs(tmp_path):
    made = {"packages": {"detoxbench": "0.1"}, "git": {"commit": "0123456789abcdef", "dirty": False}}
    for seed, value in ((0, 0.25), (1, 0.5)):
        texts(write(tmp_path, [share("DS", value)], "destein", seed, provenance=made), 0.1)
    page = report(tmp_path, tmp_path / "page.html").page.read_text()
    assert "made by detoxbench 0.1, commit 0123456789ab" in page.partition("</header>")[0]
    assert '"by_seed":[0.25,0.5]' in page.replace(" ", "")
