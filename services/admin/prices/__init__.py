"""Price books as the control plane works on them: drafts, what is published, models that are new. Read books.py first."""
