"""The exchange of rows among workers: rows go out, the decoded sum comes in.

`base` says what a step may ask of an exchange; `engine` implements it on the C++
engine, with `plan` (what the engine knows of a code) and `memory` (where rows lie).
`link` measures what a message costs, `settle` prepares estimates.
"""
