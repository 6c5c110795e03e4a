"""What tests/test_docs.py does with the code blocks of README.md and docs/: each is run, in its
page's order, or checked where its page marks it as long, or as needing a GPU or weights."""
