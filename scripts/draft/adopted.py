"""Gives this process what an engine's own process gets; imported before torch is loaded.

Training frees and takes large tensors all the time: huge pages save half of the time for that.
"""

from giusto.engine.launch import adopt_environment

adopt_environment()
