"""Measurements that reach below the engine: clocks and ceilings of a device, and single operations of the kernels."""
