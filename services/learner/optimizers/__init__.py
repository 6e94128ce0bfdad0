"""Update rules as plain maths, each of them right on parameters that are cut over ranks (DTensor)."""
