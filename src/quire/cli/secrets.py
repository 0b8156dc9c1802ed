"""How what is stored is wrapped: `train` for what is compressed, `rotate` for what is encrypted."""

from __future__ import annotations

import asyncio

import click

from quire.cli.base import json_option, opened, store_of
from quire.cli.lines import SCHEMA, out, out_json, plain, printable, say


@click.command()
@click.option("--kind", default="workflows", show_default=True, help="Kind of streams: workflows, events, ...")
@json_option
@click.pass_context
def train(ctx: click.Context, kind: str, as_json: bool) -> None:
    """Learn from the changes there are how to store them smaller.

    It makes a zstd dictionary of the newest 4,000, which new ones are
    compressed with, and says what that saves on changes it did not learn
    from. The namespace has to be compressed; one that is not becomes so when
    it is opened with ?compression=zstd:

    \b
    quire --store 'quire.db?compression=zstd' train
    """
    with opened(ctx) as store:
        gain = store.train(kind)
    saved = 1 - gain.with_bytes / max(1, gain.without_bytes)
    if as_json:
        out_json({"schema": SCHEMA, **plain(gain), "saved": round(saved, 4)})
        return
    out(
        f"{printable(gain.kind)}: {gain.samples:,} changes of {gain.plain_bytes:,} bytes take {gain.without_bytes:,} "
        f"compressed, {gain.with_bytes:,} with the dictionary: {saved:.0%} less"
    )


@click.command()
@click.option("--old-key-file", required=True, help="File with the key it opens with now: 64 hex digits.")
@click.option("--new-key-file", required=True, help="File with the key it is to open with.")
@click.pass_context
def rotate(ctx: click.Context, old_key_file: str, new_key_file: str) -> None:
    """Have an encrypted store open with another key.

    One small write, whole or not at all, whatever the store holds. Killed in
    between, it may simply be called again. Programs that have the store open
    go on. It ends what the old key opens, not what somebody could read with
    it before: if it was stolen, copy the data to a new store.
    """
    from quire.storage.open import read_key, redact_url, rotate_key

    url, namespace = store_of(ctx)
    old, new = read_key(old_key_file), read_key(new_key_file)
    done = asyncio.run(rotate_key(url, namespace=namespace, old=old, new=new))
    if not done:
        say("it opened with that key already; nothing was written")
    out(f"{redact_url(url)}: namespace {namespace} opens with the key in {printable(new_key_file)}")
