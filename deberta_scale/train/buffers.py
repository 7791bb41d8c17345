"""How much DeepSpeed holds and sends at a time, from the model and the number of ranks. Imports no torch: the engine
sets what `plan` counts."""

from dataclasses import dataclass

from deberta_scale.config import EngineConfig, ModelConfig
from deberta_scale.model.sizes import layer_parameters, parameter_count

MESSAGE_ELEMENTS = 500_000
LARGEST_BUCKET_ELEMENTS = 200_000_000
SWAPPED_TENSORS = 4
"""That an update has in memory at once, each as long as the largest sub-group: master, two moments, gradient."""
SWAPPED_BYTES_PER_PARAMETER = 4 * SWAPPED_TENSORS
"""On disk."""


@dataclass(frozen=True)
class Buffers:
    """All in elements."""

    reduce_bucket: int
    """Gradients summed over ranks at a time; allocated whole."""
    prefetch: int
    """Parameters gathered ahead of their use."""
    live: int
    """Parameters that stay gathered because they are used again within as many others."""
    sub_group: int
    """Parameters of a rank updated at a time."""
    kept_whole: int
    """Parameters up to this size are whole on every rank."""
    overlap: bool
    """Whether gradients are summed while backward goes on."""


def choose_buffers(model: ModelConfig, engine: EngineConfig, world_size: int) -> Buffers:
    """Sizes and the reasons for them:

    - the reduce bucket holds a layer's gradients, which are summed while those of the next layer are computed, and in
      a ring of N ranks at least `MESSAGE_ELEMENTS` for each, below which latency costs more than the bytes; at most
      `LARGEST_BUCKET_ELEMENTS`, since it is allocated whole;
    - the parameters of the next layer are gathered while one computes. A rank that holds all of them gathers nothing;
    - up to 1e9 parameters stay gathered between forward and backward, which spares a second gathering, a third of the
      traffic of stage 3. A model of that size fits a GPU; a larger one is released in part;
    - vectors (biases, LayerNorm) stay whole on all ranks: each would cost a message of its own, and all of them are
      less than a thousandth of a model. Matrices are cut;
    - stage 3 sums gradients during backward; stages 1 and 2 would need a second bucket for that;
    - with the optimizer on disk, memory is what is short: small buckets, nothing ahead of its use, updates of 1e8
      parameters. Measured on one machine of 24 GiB with the 1.5B model, which larger ones do not fit.
    """
    total, layer = parameter_count(model).total, layer_parameters(model)
    longest_vector = max(model.vocab_size, model.intermediate_size, model.hidden_size)
    if engine.offload_optimizer == "disk":
        return Buffers(min(total, 20_000_000), 0, min(total, 300_000_000), 100_000_000, longest_vector, False)
    gathers = world_size > 1 or engine.offload_parameters != "none"
    return Buffers(
        reduce_bucket=min(total, LARGEST_BUCKET_ELEMENTS, max(layer, world_size * MESSAGE_ELEMENTS)),
        prefetch=layer if gathers else 0,
        live=min(total, 1_000_000_000),
        sub_group=1_000_000_000,
        kept_whole=longest_vector,
        overlap=engine.zero_stage == 3 and world_size > 1,
    )
