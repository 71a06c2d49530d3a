"""How figures are shown: the style of pictures, aligned tables, intervals of a mean."""
