"""The command line as its users meet it: real processes in a folder of their own."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from detoxbench import cli
from tests.support.processes import Process, detoxbench

COMMAND = [sys.executable, "-m", "detoxbench.cli"]
NO_TORCH = """
import sys
from detoxbench import cli
code = cli.main({argv!r})
assert not {{"torch", "transformers"}} & set(sys.modules), "torch was imported"
sys.exit(code)
"""


def complaints(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What stands on stderr beside the number of each cell."""
    return [line for line in done.stderr.splitlines() if not line.startswith("[")]


# ------------------------------------------------------------------------------------------- light verbs


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["list"],
        ["list", "methods", "--json"],
        ["describe", "method", "ext_sub"],
        ["run", "--help"],
        ["plan", "method=destein", "suite.limit=2"],
        ["run", "--cfg", "job"],
        ["completion", "--query", "detoxbench run method="],
        ["data", "list"],
        ["status", "."],
        ["scorer", "check", "--help"],
        ["new", "--help"],
        ["check", "--help"],
    ],
    ids=" ".join,
)
def test_light_verbs_import_no_torch(argv: list[str], tmp_path: Path) -> None:
    code = (
        NO_TORCH.format(argv=argv)
        .replace("code = cli", "try:\n    code = cli")
        .replace("assert", "except SystemExit as end:\n    code = end.code\nassert")
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert not list(tmp_path.iterdir()), "a light verb left something behind"


def test_list_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "--json"]) == 0
    found = {kind: [row["name"] for row in rows] for kind, rows in json.loads(capsys.readouterr().out).items()}
    assert {"fable", "gpt2", "hf"} <= set(found["models"])
    assert {"none", "self_reminder", "destein", "ext_sub"} <= set(found["methods"])
    assert {"safeedit", "real_toxicity_prompts", "utility"} <= set(found["suites"])
    assert {"embedded", "profanity_check", "detoxify"} <= set(found["scorers"])


def test_every_listed_thing_has_a_summary_and_can_be_described(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["list", "--json"])
    for kind, rows in json.loads(capsys.readouterr().out).items():
        for row in rows:
            assert row["summary"], row
            assert cli.main(["describe", kind[:-1], row["name"]]) == 0
            assert row["name"] in capsys.readouterr().out


def test_describe_says_what_can_be_set_and_where_it_is_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["describe", "method", "destein"]) == 0
    said = capsys.readouterr().out
    assert "method.alpha=0.4  float, >= 0" in said
    assert "source: run_toxicity_experiment.py" in said
    assert "fit.parallel_pairs" in said
    assert "arXiv 2404.10464" in said
    assert cli.main(["describe", "model", "hf"]) == 0
    assert "model.quantization=none  Literal['none', 'nf4', 'int8']" in capsys.readouterr().out


def test_plan_names_every_cell_and_its_stages(tmp_path: Path) -> None:
    done = detoxbench(tmp_path, "plan", "method=none,destein", "-m", "seed=0,1", "suite.limit=2")
    assert done.returncode == 0, done.stderr
    titles = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert [title.split("seed=")[0].split("method=")[1].split()[0] for title in titles] == [
        "none",
        "none",
        "destein",
        "destein",
    ]
    assert len({title.split()[-1] for title in titles}) == 4, "every cell has a run id of its own"
    assert "to do" in done.stdout


# ------------------------------------------------------------------------------------------- exit codes


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["lst"], "did you mean 'list'?"),
        ([], "a verb is missing"),
        (["run", "--fast"], "unrecognized arguments: --fast"),
        (["run", "method=destien"], "did you mean 'destein'?"),
        (["run", "--cfg", "job", "method=destien"], "did you mean 'destein'?"),
        (["run", "--config-dir", "nowhere"], "no folder 'nowhere'"),
        (["run", "--experimental-rerun", "x.pickle"], "pickle"),
        (["run", "-m", "method=destein,none", "method.alpha=0.1"], "unknown key 'method.alpha' of method 'none'"),
        (["plan", "seed=-1"], "out of range"),
        (["describe", "method", "destien"], "did you mean 'destein'?"),
        (["describe", "model", "gtp2"], "did you mean 'gpt2'?"),
        (["completion"], "bash|zsh|fish"),
        (["fable", "build", "modle.seed=1"], "did you mean 'model.seed'?"),
        (["fable", "build", "model.seed=-1"], "not a number >= 0"),
        (["fable", "build", "size=huge"], "default or tiny"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(
    argv: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert not out
    assert said in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir()), "nothing ran"


def test_a_failed_job_is_one_line_and_code_1_and_the_others_run(tmp_path: Path) -> None:
    done = detoxbench(tmp_path, "run", "-m", "model=hf", "model.path=absent,fable", "suite=utility", "suite.limit=2")
    assert done.returncode == 1
    (line,) = complaints(done)
    assert line.startswith("detoxbench: [1/2] model.path=absent: model 'absent' is")
    assert "[1/2] model.path=absent: tried once more after: model 'absent' is" in done.stderr
    assert "model=fable" in done.stdout
    assert "1 failed" in detoxbench(tmp_path, "status").stdout


@pytest.mark.slow
def test_cells_of_one_model_run_together_and_are_told_in_the_order_of_the_command(tmp_path: Path) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    short = "# @package _global_\ndefaults:\n  - override /suite: utility\nsuite:\n  limit: 2\n"
    (tmp_path / "mine" / "experiment" / "short.yaml").write_text(short)
    several = ["method=none,self_reminder", "model.dtype=float32,bfloat16", "with_base=false"]
    done = detoxbench(tmp_path, "run", "-m", "--config-dir", "mine", "experiment=short", *several)
    assert done.returncode == 0, done.stderr
    begun = [line.partition("]")[0] + "]" for line in done.stderr.splitlines()]
    assert begun == ["[1/4]", "[3/4]", "[2/4]", "[4/4]"], "a model is loaded once"
    told = [line.split()[-1] for line in done.stdout.splitlines() if line.startswith("model=")]
    records = [json.loads((tmp_path / folder / "run.json").read_bytes()) for folder in told]
    assert [(record["method"], record["spec"]["model"]["dtype"]) for record in records] == [
        ("none", "float32"), ("none", "bfloat16"), ("self_reminder", "float32"), ("self_reminder", "bfloat16"),
    ]  # fmt: skip
    assert "experiment=short" in records[0]["provenance"]["command"]


def test_a_run_works_from_any_folder_and_leaves_only_the_runs_folder(tmp_path: Path) -> None:
    argv = ["run", "suite=utility", "suite.limit=2", "runs_dir=here"]
    done = detoxbench(tmp_path, *argv)
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
    again = detoxbench(tmp_path, *argv)
    assert "(was there already)" in again.stdout


def test_finished_runs_answer_without_writing_anything(tmp_path: Path) -> None:
    """As from a read-only folder; who may write everywhere, as root may, is stopped by a file in the place of locks."""
    argv = ["run", "method=none,self_reminder", "suite=utility", "suite.limit=2", "-m"]  # the flag may stand anywhere
    assert detoxbench(tmp_path, *argv).returncode == 0
    runs = tmp_path / "runs"
    for made_while_running in (".stages", ".hydra"):
        shutil.rmtree(runs / made_while_running)
        (runs / made_while_running).write_text("in the way")
    runs.chmod(0o500)
    try:
        done = detoxbench(tmp_path, *argv)
    finally:
        runs.chmod(0o700)
    assert (done.returncode, complaints(done)) == (0, [])
    assert done.stdout.count("(was there already)") == 2


@pytest.mark.slow
def test_results_lie_where_the_command_was_given_also_if_hydra_changes_folder(tmp_path: Path) -> None:
    done = detoxbench(tmp_path, "run", "suite=utility", "suite.limit=2", "hydra.job.chdir=true")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(list(tmp_path.glob("runs/*/run.json"))) == 1


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["suite=utility", "suite.data=embedded,absent.jsonl", "scorer=profanity_check"], "absent.jsonl"),
        (["suite=utility", "method=none,destein", "fit.parallel_pairs=absent.tsv"], "absent.tsv"),
        (["suite=utility", "seed=0,1", "scorer=word_list", "scorer.words=absent.txt"], "absent.txt"),
        (["suite=utility", "seed=0,1", "scorer=hf_classifier", "scorer.path=absent"], "absent"),
    ],
)
def test_one_cell_that_cannot_work_keeps_all_from_running(argv: list[str], said: str, tmp_path: Path) -> None:
    done = detoxbench(tmp_path, "run", "-m", "suite.limit=2", *argv, HF_HUB_OFFLINE="1")
    assert done.returncode in {1, 2}
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir()), "something ran"


def test_hydra_features_work(tmp_path: Path) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "own.yaml").write_text("# @package _global_\nseed: 7\n")
    done = detoxbench(tmp_path, "run", "--cfg", "job", "--config-dir", "mine", "experiment=own")
    assert "seed: 7" in done.stdout
    assert "mine" in detoxbench(tmp_path, "run", "--info", "searchpath", "--config-dir", "mine").stdout


def test_a_broken_pipe_is_no_error_message(tmp_path: Path) -> None:
    done = subprocess.run(
        f"{' '.join(COMMAND)} describe method ext_sub | true; echo ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.strip() in {"0", "1"}


@pytest.mark.parametrize(
    ("sent", "ctrl_c_is", "code"),
    [
        pytest.param(signal.SIGINT, signal.SIG_DFL, 130, marks=pytest.mark.slow),
        (signal.SIGTERM, signal.SIG_IGN, 143),  # as in a script's background job, or under nohup
    ],
)
def test_a_stopped_run_says_so_in_one_line_and_goes_on(
    sent: signal.Signals, ctrl_c_is: signal.Handlers, code: int, tmp_path: Path
) -> None:
    argv = ["run", "suite=safeedit", "suite.limit=4", "gen.batch_tokens=300"]
    running = Process(tmp_path, argv, ctrl_c_is=ctrl_c_is)
    while not any(file.stat().st_size for file in tmp_path.glob("runs/.stages/*/partial.jsonl")):
        assert running.poll() is None
    running.send(sent)
    stopped = running.end()
    assert stopped.returncode == code
    assert stopped.stderr == "detoxbench: interrupted; the same command goes on where this one stopped\n"
    (partial,) = tmp_path.glob("runs/.stages/*/partial.jsonl")
    kept = partial.read_bytes().splitlines()
    assert not list(tmp_path.glob("runs/*/run.json"))
    done = detoxbench(tmp_path, *argv)
    assert done.returncode == 0, done.stderr
    (samples,) = tmp_path.glob("runs/*/samples.jsonl")
    stored = {(row["id"], row["sample"]): row for row in map(json.loads, samples.read_bytes().splitlines())}
    for line in kept:
        row = json.loads(line)["sample"]
        found = {key: value for key, value in stored[row["id"], row["sample"]].items() if key != "base"}
        assert found == row, "all but what the base reads in the end"


# ------------------------------------------------------------------------------------------- completion


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("detoxbench ", set(cli.VERBS)),
        ("detoxbench de", {"describe", "demo"}),
        ("detoxbench list me", {"methods"}),
        ("detoxbench describe ", {"model", "method", "suite", "scorer"}),
        ("detoxbench describe method des", {"destein"}),
        ("detoxbench run met", {"method=", "method."}),
        ("detoxbench run method=des", {"method=destein"}),
        ("detoxbench run -m method=destein method.al", {"method.alpha="}),
        ("detoxbench plan method=destein suite=s", {"suite=safeedit", "suite=safeedit_test_all", "suite=safenlp"}),
        ("detoxbench leaderboard ", set()),
        ("detoxbench scorer check prof", {"profanity_check"}),
        ("detoxbench new s", {"suite", "scorer"}),
        ("detoxbench check ", {"method"}),
        ("detoxbench check method des", {"destein"}),
        ("detoxbench data verify saf", {"safeedit_test", "safeedit_test_all", "safeedit_train", "safenlp_toxigen"}),
    ],
)
def test_completion_knows_verbs_kinds_names_groups_and_keys(
    line: str, expected: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["completion", "--query", line]) == 0
    assert set(capsys.readouterr().out.split()) == expected


def test_the_bash_script_completes(tmp_path: Path) -> None:
    script = tmp_path / "completion.bash"
    script.write_text(detoxbench(tmp_path, "completion", "bash").stdout)
    (tmp_path / "detoxbench").write_text(f'#!/bin/bash\nexec {" ".join(COMMAND)} "$@"\n')
    (tmp_path / "detoxbench").chmod(0o755)
    asked = (
        f"source {script}; COMP_WORDBREAKS=$' =:'; COMP_LINE='detoxbench run method=des'; COMP_POINT=${{#COMP_LINE}}; "
        '_detoxbench; echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", asked], env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.strip() == "destein", done.stderr  # bash replaces what follows the "="


def test_a_runs_folder_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = detoxbench(tmp_path, "run", f"runs_dir={tmp_path / 'file' / 'runs'}")
    assert done.returncode == 1
    assert done.stderr.startswith("detoxbench: cannot keep results in")
    assert done.stderr.endswith("Not a directory; choose another runs_dir\n")
    assert done.stderr.count("\n") == 1


def test_each_cell_of_a_multirun_is_announced_by_what_it_alone_has() -> None:
    from detoxbench.cli.run import _titles

    assert _titles([["method=destein"]]) == [""]
    cells = [["method=destein", f"method.alpha={a}", f"seed={s}"] for a in (0.2, 0.4) for s in (0, 1)]
    assert _titles(cells)[2] == "[3/4] method.alpha=0.4 seed=0"
