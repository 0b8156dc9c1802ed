"""`demo` and `completion`."""

from __future__ import annotations

import click


@click.command()
@click.option("--folder", default="demo-out", show_default=True, help="Where the store and the report go.")
@click.option("--modules", type=click.IntRange(1), default=None, help="Survey only so many modules.")
@click.option("--child", is_flag=True, hidden=True)
@click.pass_context
def demo(ctx: click.Context, folder: str, modules: int | None, child: bool) -> None:
    """Watch agents survey Python, be killed, and go on."""
    from quire.demo import survey

    if child:
        ctx.exit(survey.agents(folder, modules))
    from quire.cli.progress import display
    from quire.demo import audience

    ctx.exit(audience.main(folder, modules, display(survey.STAGES)))


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    \b
    quire completion bash >> ~/.bashrc
    quire completion zsh  >> ~/.zshrc
    quire completion fish > ~/.config/fish/completions/quire.fish
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    group = ctx.find_root().command
    click.echo(found(group, {}, "quire", "_QUIRE_COMPLETE").source())
