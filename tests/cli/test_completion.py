"""Completion scripts, in real shells."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flowrun import SqliteStateStore, build_default_engine
from flowrun.cli.commands import main

COMMANDS = [
    "run",
    "resume",
    "list",
    "show",
    "validate",
    "runs",
    "report",
    "explain",
    "error",
    "result",
    "logs",
    "prune",
    "cache",
    "completion",
]

BASH = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
how=$(complete -p flowrun); function=${how#*-F }; function=${function% *}
$function flowrun "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def shell(name: str) -> str:
    found = shutil.which(name)
    if found is None or os.name == "nt":
        pytest.skip(f"there is no {name} here")
    return found


@pytest.fixture
def script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    """Write the script of a shell to a file; the command itself is found on the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    command = folder / "flowrun"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m flowrun "$@"\n', "utf-8")
    command.chmod(0o755)

    def write(name: str) -> str:
        assert main(["completion", name]) == 0
        path = tmp_path / f"script.{name}"
        path.write_text(capsys.readouterr().out, "utf-8")
        return str(path)

    return write


def said(folder: Path, command: list[str]) -> list[str]:
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": path, "HOME": str(folder), "XDG_CONFIG_HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ([""], COMMANDS),
        (["--traceback", ""], COMMANDS),
        (["re"], ["resume", "report", "result"]),
        (["show", "--st"], ["--style"]),
        (["show", "jobs", ":", "engine", "shop", "--style", ""], ["tree", "mermaid", "dot"]),
        (["runs", "runs.db", "--status", "f"], ["failed"]),
        (["runs", "--status", "failed", ""], [""]),
        (["completion", ""], ["bash", "fish", "zsh"]),
        (["resume", "jobs", ":", "engine", "l"], ["latest"]),
        (["run", "--no-progress", "--j"], ["--json"]),
        (["report", "runs.db", "--h"], ["--help", "--html"]),
        (["report", "--html", "page.html", ""], [""]),
        (["report", "no_such.db", ""], ["latest"]),
        (["error", "no_such.db", "l"], ["latest"]),
        (["prune", ""], [""]),
        (["cache", ""], ["ls", "clear"]),
        (["cache", "ls", ""], [""]),
    ],
)
def test_bash_completes(
    tmp_path: Path, script: Callable[[str], str], words: list[str], offered: list[str]
) -> None:
    command = [shell("bash"), "--norc", "--noprofile", "-c", BASH, "bash", script("bash")]
    assert said(tmp_path, [*command, "flowrun", *words]) == offered


async def test_bash_completes_the_ids_of_runs(tmp_path: Path, script: Callable[[str], str]) -> None:
    store = SqliteStateStore(tmp_path / "my runs.db")
    engine = build_default_engine(state_store=store)
    engine.task(name="a", dag="d")(lambda: 1)
    ids = [await engine.run_once("d") for _ in range(3)]
    await engine.aclose()
    store.close()
    command = [shell("bash"), "--norc", "--noprofile", "-c", BASH, "bash", script("bash")]
    offered = said(tmp_path, [*command, "flowrun", "report", "my runs.db", ""])
    assert offered == ["latest", *reversed(ids)]
    first = said(tmp_path, [*command, "flowrun", "report", "my runs.db", ids[0][:9]])
    assert first == [ids[0]]


TYPED = {
    "flowrun comp\tba\t": "<completion bash>",
    "flowrun show place --sty\tme\t": "<show place --style mermaid>",
    "flowrun runs --status f\t": "<runs --status failed>",
    "flowrun prune --ol\t": "<prune --older-than>",
}


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@pytest.mark.parametrize("name", ["bash", "zsh"])
def test_completes_what_is_typed(tmp_path: Path, script: Callable[[str], str], name: str) -> None:
    pexpect = pytest.importorskip("pexpect", reason="pexpect (dependency group 'dev') is not here")
    path = script(name)
    options = {"bash": ["--norc", "--noprofile"], "zsh": ["-f", "-i"]}[name]
    environment = {**os.environ, "TERM": "dumb", "INPUTRC": os.devnull, "HOME": str(tmp_path)}
    child = pexpect.spawn(shell(name), options, env=environment, cwd=str(tmp_path), timeout=20)
    child.delaybeforesend = None
    try:
        if name == "zsh":  # as people do before; else it asks about folders of others
            child.sendline("autoload -Uz compinit; compinit -u -D")
        child.sendline(f"flowrun() {{ echo \"<$*>\"; }}; source '{path}'; echo rea''dy")
        child.expect("ready\r\n")
        for keys, typed in TYPED.items():
            child.send(f"{keys}\n")
            child.expect(re.escape(typed.rstrip(">")) + " ?>")
    finally:
        child.close(force=True)


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("flowrun re", {"resume", "report", "result"}),
        ("flowrun completion ", {"bash", "zsh", "fish"}),
        ("flowrun runs --status ", {"succeeded", "failed", "running"}),
        ("flowrun prune --ol", {"--older-than"}),
    ],
)
def test_fish_completes(
    tmp_path: Path, script: Callable[[str], str], line: str, offered: set[str]
) -> None:
    asked = f"source {script('fish')}; complete -C '{line}'"
    lines = said(tmp_path, [shell("fish"), "--no-config", "-c", asked])
    assert {line.split("\t")[0] for line in lines} == offered
