"""`kubectl greenthread`, also called `greenthread`: a verb a file, reading apart from printing.

Start-up counts: nothing here imports more than the standard library, and `localcluster` and `tui` are
imported by the verbs that open them.
"""
