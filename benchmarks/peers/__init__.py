"""The engines that nonet is compared with on a CPU: how each is installed, run and timed."""
