"""The ledger: every sample of the run, who holds it, and what became of it.

A pure state machine (`book.Book` on `table.Table`) decides; a SQLite file (`store.Store`) remembers. The life of a
sample is drawn in `states`; how leases are granted, kept and lost in `book`; when they may be granted in `admission`
and `grants`; how samples become batches in `batches`; what a restart and a restore do in `recovery`.
"""
