"""The command `completion`: completions of commands, settings and their values for the shell."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from genfl_mpi.cli import COMMANDS, launch
from genfl_mpi.mpi import launchers

# Bash splits a word at "=": the key is the word before it.
SCRIPT = """\
_genfl_mpi_values() {{
  case "$1" in
{values}
  esac
}}
_genfl_mpi() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}"
  if [ "$current" = "=" ]; then
    COMPREPLY=($(compgen -W "$(_genfl_mpi_values "$before")"))
  elif [ "$before" = "=" ]; then
    COMPREPLY=($(compgen -W "$(_genfl_mpi_values "${{COMP_WORDS[COMP_CWORD-2]}}")" -- "$current"))
  else
    local words="{keys}"
    if [ "$COMP_CWORD" = 1 ] || [ "$before" = help ]; then words="{commands} $words"; fi
    COMPREPLY=($(compgen -W "$words" -- "$current"; compgen -f -- "$current"))
    if [ "${{#COMPREPLY[@]}}" = 1 ]; then case "$COMPREPLY" in *=) compopt -o nospace 2>/dev/null ;; esac; fi
  fi
}}
complete -o default -F _genfl_mpi genfl_mpi"""


def completion(arguments: Sequence[str]) -> int:
    """Print completions of commands and settings for the shell."""
    parser = launch.command_parser(
        "completion",
        "Print a script that completes the commands, settings and values of `genfl_mpi`\n"
        "in bash, or in zsh after `autoload -U bashcompinit && bashcompinit`.\n"
        "For example:\n"
        "  python -m genfl_mpi completion > ~/.genfl_mpi.bash && . ~/.genfl_mpi.bash",
    )
    launch.parse_once(parser, arguments)
    return launch.print_lines([_script()] if launchers.is_first(os.environ) else [])


def _script() -> str:
    found = dict(_choices())
    values = "\n".join(f'    {key}) echo "{" ".join(names)}" ;;' for key, names in found.items() if names)
    return SCRIPT.format(
        values=values, keys=" ".join(f"{key}=" for key in found), commands=" ".join(sorted(COMMANDS))
    )


def _choices() -> Iterator[tuple[str, list[str]]]:
    """Yield every setting with the values that it takes, if they have names."""
    from genfl_mpi.cli.help import names
    from genfl_mpi.config import describe
    from genfl_mpi.config.settings import Config, keys, section_in

    known = keys()
    for key in known:
        section = Config
        for part in key.split(".")[:-1]:
            section = section_in(section.model_fields[part].annotation)  # type: ignore[assignment]
        field = section.model_fields[key.rpartition(".")[2]]
        if section_in(field.annotation) is None:
            is_flag = field.default in (True, False) and isinstance(field.default, bool)
            found = list(describe.choices(section, key, names))
            yield key, found + (["true", "false"] if is_flag else [])
