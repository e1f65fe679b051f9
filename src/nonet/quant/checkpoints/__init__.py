"""In which layout does a checkpoint keep its quantised weights? One file a layout; torch-free until one is loaded."""

from nonet.core.catalogue import Catalogue

__all__ = ["CHECKPOINT_FORMATS"]

# By the name that `quant_method` has in the quantization_config of config.json.
CHECKPOINT_FORMATS = Catalogue(
    "quant_method",
    {
        "awq": "nonet.quant.checkpoints.awq:AWQ",
        "compressed-tensors": "nonet.quant.checkpoints.compressed_tensors:CompressedTensors",
        "fbgemm_fp8": "nonet.quant.checkpoints.fp8:FP8",
        "fp8": "nonet.quant.checkpoints.fp8:FP8",
        "gptq": "nonet.quant.checkpoints.gptq:GPTQ",
    },
)
