"""Signatures of images in cosign's formats, and the policies that ask for them. No I/O."""
