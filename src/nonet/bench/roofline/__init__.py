"""How near to the limits of its device a model runs: prefill and decode, against measured rates."""
