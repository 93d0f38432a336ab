"""Students: small image networks that are taught, without labels, to give the vectors of a big CLIP's image tower.

A device answers with one for the same label vectors as the big CLIP. Its vector travels as packets of the family
`embedding`.
"""
