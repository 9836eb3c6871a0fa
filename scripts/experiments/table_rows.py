"""The tables of scripts/reproduce.py: what they are about, and the flags of each of their rows."""

import argparse

from experiments.no_harm_table import all_rows
from experiments.two_networks_table import ROWS

from famus_hf import FaMUSTrainingArguments

LOOKS = ("--log_stage_times=10", "--log_layers=50", "--log_weights=100", "--log_meta_gradient=50")  # of table figures
TABLES = {
    "3": "losses",
    "4": "sampling strategies",
    "speed": "departures from the paper's step that save time",
    "two-networks": "without any clean label, two networks beside one",
    "no-harm": "the recommended setting beside all that needs no meta step, in many cells",
    "figures": "what Figures 1, 3, 4 and 5 compare, with diagnostics",
    "fine-tuning": "a pretrained network with AdamW, and its virtual step",
}


def rows_of(options: argparse.Namespace) -> dict[str, list[str]]:
    """Return row of the table → flags of run_famus.py."""
    if options.table == "two-networks":
        return ROWS
    if options.table == "no-harm":
        return all_rows()
    mw_net = "--meta_learner=mw-net"
    learned = [mw_net, "--layer_sampler=learned"]
    plain, exact = ["--meta_learner=none"], [mw_net, "--layer_sampler=all"]
    if options.table == "figures":
        return {
            "plain training": plain,
            "MW-Net": [*exact, *LOOKS],
            "random, s = 4": [mw_net, "--layer_sampler=random", "--random_layers=4", *LOOKS],
            "FaMUS (K = 4)": [*learned, *LOOKS],
            "FaMUS (budget 0.2)": [*learned, "--meta_budget=0.2", *LOOKS],
        }
    if options.table == "fine-tuning":
        famus = [*learned, "--meta_budget=0.2"]
        by_sgd = [*famus, "--meta_optim=sgd", "--meta_learning_rate=0.01"]
        return {
            "plain training": plain,
            "MW-Net": exact,
            "FaMUS (budget 0.2)": famus,
            "FaMUS (budget 0.2), virtual step by SGD": [*famus, "--virtual_step=sgd"],
            "FaMUS (budget 0.2), meta-net by SGD": by_sgd,
            "FaMUS (budget 0.2), both by SGD": [*by_sgd, "--virtual_step=sgd"],
            "preset fast": [mw_net, "--preset=fast"],
        }
    rows = {"plain training": plain, "MW-Net, all layers (L_c)": exact}
    if options.table == "3":
        rows["sampler, L_c + L_g"] = [*learned, "--sparsity_weight=0"]
        rows["sampler, L_c + L_r"] = [*learned, "--gradient_match_weight=0"]
    elif options.table == "speed":
        top = [mw_net, "--layer_sampler=all", "--candidate_layers=4"]
        batch = FaMUSTrainingArguments.per_device_train_batch_size
        reused, quarter = "--reuse_virtual_gradient=true", f"--meta_batch_size={batch // 4}"
        rows["top 4, fixed"] = top
        rows["top 4, meta batch n/4"] = [*top, quarter]
        rows["top 4, meta step every 10"] = [*top, "--meta_interval=10"]
        rows["top 4, finite differences"] = [*top, "--derivative=finite"]
        rows["top 4, virtual scope candidates"] = [*top, "--virtual_scope=candidates"]
        rows["top 4, virtual scope candidates, n/4"] = [*top, "--virtual_scope=candidates", quarter]
        rows["top 4, reused gradient"] = [*top, reused]
        rows["top 4, reused gradient, n/4"] = [*top, reused, quarter]
        rows["top 4, reused gradient, every 10"] = [*top, reused, "--meta_interval=10"]
        return rows
    else:
        rows |= {f"block {b}": [mw_net, "--layer_sampler=block", f"--sampler_block={b}"] for b in options.blocks}
        rows |= {
            f"random, s = {s}": [mw_net, "--layer_sampler=random", f"--random_layers={s}"]
            for s in options.random_layers
        }
        rows["top 4, fixed"] = [mw_net, "--layer_sampler=all", "--candidate_layers=4"]
    rows["FaMUS (K = 4)"] = learned
    rows["FaMUS (K = 4), relative slopes"] = [*learned, "--sampler_relative_slopes=true"]
    rows |= {f"FaMUS (budget {b:g})": [*learned, f"--meta_budget={b}"] for b in options.budgets}
    return rows
