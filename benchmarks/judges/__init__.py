"""What looks at a decoded picture and says how good it is: CLIP, image networks, perceptual distances.

Never encodes or sends.
"""
