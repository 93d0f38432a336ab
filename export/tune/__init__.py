"""`thinwire-export tune`: the cloud's decoder of a bundle, trained for one CLIP. Devices keep what they have.

`content` says what a packet holds once it is decoded, `views` codes photographs once, `tuning` trains the net between
that and the tower.
"""
