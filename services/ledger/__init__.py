"""The ledger: every sample of the run, who holds it, and what became of it.
 A pure state machine (`book.Book`) decides; a SQLite file (`store.Store`) remembers. The life of a sample is
drawn in `states`; how a lease is granted, kept and lost in `book`; when it may be granted in `admission` and
`grants`; how samples become batches in `batches`; what a restart and a restore do in `recovery`.
"""
