"""Pure decisions: how complex a query is, where it goes, what it costs. Standard library only."""
