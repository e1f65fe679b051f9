"""The semantic cache: gates over words, thresholds that are learned, a bound that is verified."""
