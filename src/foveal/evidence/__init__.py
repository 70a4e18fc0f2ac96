"""What proves the methods: `foveal.evidence.<path>` proves `foveal.<path>`, and nothing that a user runs imports it.

A method's evidence is one file of `CLAIMS`. The files share `tasks` (data, splits, floors, trained(), score(),
better()), `rivals` (what methods are compared with) and one short trainer; they never import each other. `studies`
hold the rows that have no code of their own.
"""
