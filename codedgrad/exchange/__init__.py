"""The exchange of rows among workers: rows go out, the decoded sum comes in."""
