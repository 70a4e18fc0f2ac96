"""Evidence for the methods: `foveal.evidence.<path>` tests `foveal.<path>`; only the catalogue and claims import it.

A method's evidence is one file of `CLAIMS`. The files share `tasks` (data, splits, floors, trained(), score(),
better()), `rivals` (baselines) and one short trainer; they never import each other. `studies` contains the rows without
code of their own.
"""
