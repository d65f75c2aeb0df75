"""The three networks of MS-Vid2Vid-XL and the configurations they come in.

Importing this package does not import PyTorch; importing one of its networks does.
"""
