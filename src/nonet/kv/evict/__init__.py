"""Which idle block loses its content when a blank one is needed and there is none."""
