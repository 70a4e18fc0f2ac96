"""Small honest tasks that many rows share, a file each: data, splits, the floor, trained(), score(), better()."""
