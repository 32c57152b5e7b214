"""Completion scripts for shells, made from the command line's own parser."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, NamedTuple, cast

if TYPE_CHECKING:
    import argparse

SHELLS = ("bash", "fish", "zsh")


class _Command(NamedTuple):
    """What can be typed after one command.

    Attributes:
        help: What it does.
        options: Its options with their help.
        taking: Those of them that take a value.
        choices: The values of those that have a fixed set; without a name: its argument's.
        run_in: Where a run's id is wanted: ``"file"``, ``"engine"``, or nowhere.
    """

    help: str
    options: dict[str, str]
    taking: list[str]
    choices: dict[str, list[str]]
    run_in: str


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return the completion script for a shell: one of ``SHELLS``."""
    commands = _commands(parser)
    if shell == "fish":
        return _fish(parser.prog, commands)
    bash = _bash(parser.prog, commands)
    # zsh runs bash's completion functions.
    loaded = (
        "autoload -Uz compinit bashcompinit\n(( $+functions[compdef] )) || compinit\nbashcompinit\n"
    )
    return loaded + bash if shell == "zsh" else bash


def _commands(parser: argparse.ArgumentParser) -> dict[str, _Command]:
    """Return every command by its name; the program itself has none."""
    found = {"": _command(parser)}
    for action in parser._actions:  # noqa: SLF001 - argparse has no other way to ask
        choices: object = action.choices
        if isinstance(choices, dict):
            added = cast("dict[str, argparse.ArgumentParser]", choices)
            found.update((name, _command(command)) for name, command in added.items())
    found[""].choices[""] = [name for name in found if name]
    return found


def _command(parser: argparse.ArgumentParser) -> _Command:
    made = _Command(parser.description or "", {}, [], {}, _run_in(parser))
    for action in parser._actions:  # noqa: SLF001 - argparse has no other way to ask
        made.options.update(dict.fromkeys(action.option_strings, action.help or ""))
        made.taking.extend(name for name in action.option_strings if action.nargs != 0)
        if action.choices is not None and not isinstance(action.choices, dict):
            for name in action.option_strings or [""]:
                made.choices[name] = [str(choice) for choice in action.choices]
    return made


def _run_in(parser: argparse.ArgumentParser) -> str:
    names = [action.dest for action in parser._actions if not action.option_strings]  # noqa: SLF001 - as above
    if "run" not in names:
        return ""
    return "file" if "db" in names else "engine"


def _bash(prog: str, commands: dict[str, _Command]) -> str:
    options = "\n".join(
        f"        {shlex.quote(name)}) options={shlex.quote(' '.join(command.options))} ;;"
        for name, command in commands.items()
    )
    values = "\n".join(
        f"        {shlex.quote(f'{name}:{option}:')}{'value' if option else int(bool(name))})"
        f" values={shlex.quote(' '.join(choices))} ;;"
        for name, command in commands.items()
        for option, choices in command.choices.items()
    )
    taking = sorted({name for command in commands.values() for name in command.taking})
    wanted = {
        place: "|".join(name for name, command in commands.items() if command.run_in == place)
        for place in ("file", "engine")
    }
    return (
        _BASH.replace("@PROG@", prog)
        .replace("@OPTIONS@", options)
        .replace("@VALUES@", values)
        .replace("@TAKING@", "|".join(taking))
        .replace("@IN_FILE@", wanted["file"])
        .replace("@IN_ENGINE@", wanted["engine"])
    )


_BASH = r"""
_@PROG@() {
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
    esac
    case "$command" in
        @IN_FILE@)
            if [ "$place" = 2 ]; then
                values="latest $("${COMP_WORDS[0]}" runs "$file" --limit 50 2>/dev/null |
                    sed -n 's/^\([^ ]*\)  [0-9].*/\1/p')"
            fi
            ;;
        @IN_ENGINE@)
            # A place with a colon is several words to bash.
            if [ "$place" != value ] && [ "$place" != 1 ]; then values="latest"; fi
            ;;
    esac
    case "$word" in
        -*) values="$options" ;;
    esac
    COMPREPLY=($(compgen -W "$values" -- "$word"))
}
complete -o default -F _@PROG@ @PROG@
""".lstrip("\n").rstrip("\n")


def _fish(prog: str, commands: dict[str, _Command]) -> str:
    lines: list[str] = []
    for name, command in commands.items():
        when = f"__fish_seen_subcommand_from {name}" if name else "__fish_use_subcommand"
        start = f"complete -c {prog} -n '{when}'"
        if name:
            text = shlex.quote(command.help)
            lines.append(f"complete -c {prog} -n __fish_use_subcommand -f -a {name} -d {text}")
        for option, told in command.options.items():
            kind = "-l" if option.startswith("--") else "-s"
            line = f"{start} {kind} {option.lstrip('-')} -d {shlex.quote(told)}"
            if option in command.choices:
                line += f" -x -a {shlex.quote(' '.join(command.choices[option]))}"
            lines.append(line)
        if name and "" in command.choices:
            lines.append(f"{start} -f -a {shlex.quote(' '.join(command.choices['']))}")
        if command.run_in:
            lines.append(f"{start} -a latest")
    return "\n".join(lines)
