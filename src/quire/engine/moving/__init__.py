"""From one store into another: records in their order (loading), what lies beside them, the proof that it arrived.

`copying` brings over an open store; `engine/backing` uses the same to bring back what a backup kept.
"""
