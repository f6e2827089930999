"""What the ledger says, for people and programs.

spend · sessions · adhoc    one module per report: read, sum up, lay out
render · options            how it looks; what may be asked for
nightly · nightly_*         a day's page and files (+ templates)
cli                         the commands
demo                        a session to look at, over real HTTP
"""

import logging

logging.getLogger("reports").addHandler(logging.NullHandler())
