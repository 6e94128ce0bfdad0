"""Reference pages out of the code that they describe: one module a page, each a function that returns its text."""
