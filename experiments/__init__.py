"""What the library is used for here: studies, their records, tables and figures, and benchmarks.

Beside the library, not part of it: experiments imports stn_cifar and is never imported by it.
studies says what is asked, run trains what is missing, records keeps it, tables, figures and report
tell it. Adding a study is adding an entry to studies.STUDIES.
"""
