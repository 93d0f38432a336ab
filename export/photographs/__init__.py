"""One door for photographs: folders, tars, WebDataset shards, lists of paths, data sets of the hub. Decoded as needed.

`sources` finds pictures, `index` remembers where they lie, `views` decodes and keeps them, `collection` mixes sources.
"""
