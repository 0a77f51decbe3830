"""DeepSpeed's own settings train no other recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from recipes.config.settings import RecipeError
from recipes.launching.deepspeed import refuse_other_training

DECIDING: dict[str, Any] = {
    "optimizer": {"type": "Adam", "params": {"lr": 0.1}},
    "scheduler": {"type": "WarmupLR", "params": {}, "extra": 1},
    "fp16": {"enabled": True},
    "bf16": {"enabled": True},
    "amp": {"enabled": True},
    "torch_autocast": {"enabled": True, "dtype": "bfloat16"},
    "data_types": {"grad_accum_dtype": "bf16"},
    "communication_data_type": "bf16",
    "gradient_clipping": 1.0,
    "gradient_accumulation_steps": 4,
    "train_batch_size": 64,
    "prescale_gradients": True,
    "gradient_predivide_factor": 2.0,
    "sparse_gradients": True,
    "curriculum_learning": {"enabled": True},
    "data_efficiency": {"enabled": True},
    "progressive_layer_drop": {"enabled": True},
    "compression_training": {"weight_quantization": {"shared_parameters": {"enabled": True}}},
    "elasticity": {"enabled": True},
    "a_setting_of_tomorrow": 3,
}
ZERO = {"zero_quantized_weights": True, "zero_quantized_gradients": True, "a_new_one": 2}
FREE: dict[str, Any] = {
    "fp16": {"enabled": "auto", "loss_scale": 0},
    "bf16": {"enabled": False, "check_grad_overflow": True},
    "gradient_clipping": 0.0,
    "gradient_accumulation_steps": 2,
    "communication_data_type": None,
    "gradient_predivide_factor": 1.0,
    "steps_per_print": 100,
    "wall_clock_breakdown": True,
    "flops_profiler": {"enabled": True, "profile_step": 3},
    "zero_optimization": {
        "stage": 2,
        "overlap_comm": True,
        "reduce_bucket_size": 5e8,
        "offload_optimizer": {"device": "cpu"},
        "zero_quantized_weights": False,
    },
}


@pytest.mark.parametrize("key", DECIDING)
def test_what_would_change_the_recipe_is_refused_by_name(key: str) -> None:
    with pytest.raises(RecipeError, match=f"settings have {key}, which the recipe decides"):
        refuse_other_training(FREE | {key: DECIDING[key]}, accumulate=2)


@pytest.mark.parametrize("key", ZERO)
def test_what_zero_would_change_is_refused_by_name(key: str) -> None:
    config = {"zero_optimization": {"stage": 3, key: ZERO[key]}}
    with pytest.raises(RecipeError, match=rf"settings have zero_optimization\.{key}, which"):
        refuse_other_training(config, accumulate=1)


def test_places_buckets_and_logs_are_free_and_our_files_too(root: Path) -> None:
    refuse_other_training(FREE, accumulate=2)
    for path in sorted((root / "recipes/deepspeed").glob("*.json")):
        refuse_other_training(json.loads(path.read_text()), accumulate=4)
