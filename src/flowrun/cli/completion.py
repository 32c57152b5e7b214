"""Completion scripts for shells, made from the table of commands."""

from __future__ import annotations

import shlex
from argparse import SUPPRESS
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from flowrun.cli.arguments import Argument, Command

SHELLS = ("bash", "fish", "zsh")


def script(commands: Mapping[str, Command], shell: str) -> str:
    """Return the completion script for a shell: one of ``SHELLS``."""
    if shell == "fish":
        return "\n".join(_fish(commands))
    bash = _bash(commands)
    # zsh runs bash's completion functions.
    loaded = (
        "autoload -Uz compinit bashcompinit\n(( $+functions[compdef] )) || compinit\nbashcompinit\n"
    )
    return loaded + bash if shell == "zsh" else bash


def _offered(command: Command) -> Iterable[Argument]:
    return (one for one in command.arguments if one.help != SUPPRESS)


def _bash(commands: Mapping[str, Command]) -> str:
    options = [_case("", "options='-h --help --traceback --version'")]
    values = [_case("::0", f"values={shlex.quote(' '.join(commands))}")]
    taking: set[str] = set()
    for name, command in commands.items():
        offered = [one.name for one in _offered(command) if one.name.startswith("-")]
        options.append(_case(name, f"options='-h --help {' '.join(offered)} --traceback'"))
        for one in command.arguments:
            taking.update([one.name] if one.takes_value else [])
            if choices := " ".join(one.words):
                place = f"{one.name}:value" if one.takes_value else ":1"
                values.append(_case(f"{name}:{place}", f"values={shlex.quote(choices)}"))
    return (
        _BASH.replace("@OPTIONS@", "\n".join(options))
        .replace("@VALUES@", "\n".join(values))
        .replace("@TAKING@", "|".join(sorted(taking)))
    )


def _case(pattern: str, body: str) -> str:
    return f"        {shlex.quote(pattern)}) {body} ;;"


_BASH = r"""
_flowrun() {
    local word="${COMP_WORDS[COMP_CWORD]}" before="" each=""
    local command="" file="" options="" values="" place=0 index
    for ((index = 1; index < COMP_CWORD; index++)); do
        each="${COMP_WORDS[index]}"
        case "$before" in
            @TAKING@) before="" && continue ;;
        esac
        before="$each"
        case "$each" in
            -*) continue ;;
        esac
        ((++place))
        if [ "$place" = 1 ]; then command="$each"; fi
        if [ "$place" = 2 ]; then file="$each"; fi
    done
    case "$command" in
@OPTIONS@
    esac
    case "$before" in
        @TAKING@) place="value" ;;
        *) before="" ;;
    esac
    case "$command:$before:$place" in
@VALUES@
        report::2|error::2|result::2|logs::2)
            values="latest $("${COMP_WORDS[0]}" runs "$file" --limit 50 2>/dev/null |
                sed -n 's/^\([^ ]*\)  [0-9].*/\1/p')"
            ;;
        # A place with a colon is several words to bash.
        resume::[2-9]) values="latest" ;;
    esac
    case "$word" in
        -*) values="$options" ;;
    esac
    COMPREPLY=($(compgen -W "$values" -- "$word"))
}
complete -o default -F _flowrun flowrun
""".strip("\n")


def _fish(commands: Mapping[str, Command]) -> Iterable[str]:
    yield "complete -c flowrun -s h -l help -d 'show help'"
    yield "complete -c flowrun -l traceback -d 'show the whole traceback of an error'"
    yield "complete -c flowrun -n __fish_use_subcommand -l version -d 'show the version'"
    for name, command in commands.items():
        told = shlex.quote(command.help)
        yield f"complete -c flowrun -n __fish_use_subcommand -f -a {name} -d {told}"
        for one in _offered(command):
            line = f"complete -c flowrun -n '__fish_seen_subcommand_from {name}'"
            if one.name.startswith("-"):
                line += f" -l {one.name[2:]} -d {shlex.quote(one.help)}"
            if choices := " ".join(one.words):
                yield f"{line} -x -a {shlex.quote(choices)}"
            elif one.name == "run":
                yield f"{line} -a latest"
            elif one.name.startswith("-"):
                yield line
