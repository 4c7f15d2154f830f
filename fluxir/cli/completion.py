"""The verb ``completion``: the script that teaches a shell to complete ``fluxir``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from .common import Output, verb

__all__ = ["command"]

_HELP = """Print the completion script for SHELL.

bash: fluxir completion bash > ~/.local/share/bash-completion/completions/fluxir

zsh: fluxir completion zsh > a directory of $fpath, as _fluxir

fish: fluxir completion fish > ~/.config/fish/completions/fluxir.fish
"""


@verb("completion", help=_HELP)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(output: Output, shell: str) -> None:
    from .group import root

    kind = get_completion_class(shell)
    assert kind is not None
    writer = kind(root, {}, "fluxir", "_FLUXIR_COMPLETE")
    # Not writer.source(): for bash that starts a bash to ask for its version, and refuses where none is installed.
    script = writer.source_template % writer.source_vars()
    output.result({"shell": shell, "script": script}, script)
