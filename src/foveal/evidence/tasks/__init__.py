"""Small tasks shared by many rows, one file each: data, splits, floor, trained(), score(), better()."""
