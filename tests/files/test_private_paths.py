"""Nothing personal stands in a file that may be shared: no home, no user's name, no folder of this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from detoxbench import cli
from detoxbench.files.private_paths import impersonal, without_paths

NAME = "some_person"


def test_a_path_is_shown_as_it_means_the_same_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, work = tmp_path / NAME, tmp_path / "work"
    work.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    given = {
        "a": [f"{home}/m", f"{work}/runs/x", "/data/" + NAME + "/texts.jsonl", "here/there", "hub/name", "and/or", 3]
    }
    shown = {"a": ["~/m", "runs/x", "texts.jsonl", "here/there", "hub/name", "and/or", 3]}
    assert without_paths(given, impersonal) == shown
    config_dir = f"hydra.searchpath=['file://{home}/conf']"
    assert without_paths(config_dir, impersonal) == "hydra.searchpath=['~/conf']"
    assert without_paths(f"../{NAME}/m", impersonal) == "~/m"
    line = f"waiting for {home}/runs/.stages/fit-1, then suite.data={work}/q.jsonl"
    assert without_paths(line, impersonal) == "waiting for ~/runs/.stages/fit-1, then suite.data=q.jsonl"


def test_a_run_tells_nothing_of_who_ran_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / NAME
    (home / "runs").mkdir(parents=True)
    (home / "prompts.jsonl").write_text('{"prompt": {"text": "hello there"}}\n')
    monkeypatch.setenv("DETOXBENCH_CACHE", os.environ.get("DETOXBENCH_CACHE") or f"{Path.home()}/.cache/detoxbench")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USER", NAME)
    overrides = ["method=self_reminder", "suite=real_toxicity_prompts", f"suite.data={home}/prompts.jsonl", "gen.n=2",
                 "scorer=profanity_check", f"runs_dir={home}/runs"]  # fmt: skip
    assert cli.main(["run", *overrides]) == 0
    files = [file for file in (home / "runs").rglob("*") if file.is_file()]
    assert len(files) > 10
    assert not [file for file in files if NAME.encode() in file.read_bytes()]
    assert cli.main(["report", f"{home}/runs", "-o", f"{tmp_path}/page.html"]) == 0
    assert NAME not in (tmp_path / "page.html").read_text()
