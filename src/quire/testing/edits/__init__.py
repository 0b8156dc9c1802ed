"""Concurrent edits under attack: clients that write at random, and the proof from the log that all went by the rules.

    outcome = await run(Campaign(url="sqlite:///edits.db", seed="1", crowd="processes"), folder)
    assert not outcome.findings

`steps` and `programs` say what is written, `clients` write it and keep ledgers, `campaign` runs many of them. `tree`,
`reads`, `rules` and `redo` compute what must come of it, on plain data and apart from the library; `serial` and `shows`
compare. `machine` holds several edits open at once, in an order that Hypothesis chooses.
"""
