"""Token-tree speculation: grow candidates, choose which to verify, learn how often they are right.

Pure: no tensor, no clock. The target's own draws decide what is accepted (`engine.walk`), so that
answers are the target's whatever is proposed here.
"""
