"""`hoc replay`: where the numbers of a training run that stopped became infinite or no numbers."""

from __future__ import annotations

from dataclasses import asdict

from cli import console
from cli.options import DeviceOption, JsonOption, RunArgument


def replay(
    run: RunArgument,
    device: DeviceOption = "auto",
    json_output: JsonOption = False,
) -> None:
    """Run again the step at which a loss was not finite, and tell where that began.

    `hoc train` saves the batch, weights and seeds of that step (nonfinite.json and .safetensors in
    the run folder). It is run as it was trained and in fp32: weights, batch, every module's
    output, the loss, and the gradients on the way back.
    """
    from training.replay import replay as replay_step

    found = replay_step(run, device=device)
    if json_output:
        console.print_json(asdict(found))
        return
    losses = [
        (precision, "loss", "of each part", ", ".join(f"{loss:.6g}" for loss in values))
        for precision, values in found.losses.items()
    ]
    rows = [(f.precision, f.place, f.name, f.detail) for f in found.findings]
    title = f"{run}, step {found.step} (epoch {found.epoch + 1}): first numbers that are not finite"
    console.print_table(title, ["precision", "where", "what", "how"], rows + losses)
    bad = {finding.precision for finding in found.findings}
    for precision in found.losses:
        if precision not in bad:
            console.out.print(f"In {precision} every number of the step is finite.", markup=False)
    if found.sample_ids:
        console.out.print(f"Samples: {', '.join(found.sample_ids)}", markup=False)
