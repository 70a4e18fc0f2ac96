"""Tells how long a pile of pictures will take, and asks nobody: a plan costs no pixels."""

import sys

from foveal import Upscaler

upscale = Upscaler(scale=4)
plans = [upscale.plan(path) for path in sys.argv[1:]]
print(f"{len(plans)} pictures, {sum(plan.megapixels for plan in plans):.2f} megapixels")
print(f"about {sum(plan.seconds for plan in plans):.0f} s with {upscale.card.name} on {upscale.engine()}")
