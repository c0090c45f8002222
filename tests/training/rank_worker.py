"""One rank of a test group: runs a list of small trainings in one process group and writes what it saw.

`python -m tests.training.rank_worker JOBS.json OUT.json`, with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
import zlib
from contextlib import nullcontext
from pathlib import Path

from torch.distributed import TCPStore

from tests.conftest import ROOT
from tests.training.own_memory import Peak

warnings.filterwarnings("ignore")


def run_group(world_size: int, jobs: list[dict], folder: Path, timeout: int = 420) -> list[dict]:
    """Runs the jobs on `world_size` ranks; gives the first rank's findings, one dict a job."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    # The kernel chooses the port of a store that is there before any rank: none is bound twice. Told that it is an
    # agent's, as torchrun's is, the first rank makes no other.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks = []
    for rank in range(world_size):
        env = {
            **os.environ,
            "RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "LOCAL_RANK": str(rank),
            "MASTER_ADDR": "127.0.0.1",
        }
        env |= {"MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        command = [
            sys.executable,
            "-m",
            "tests.training.rank_worker",
            str(folder / "jobs.json"),
            str(folder / "out.json"),
        ]
        with (folder / f"rank{rank}.log").open("w") as log:
            ranks.append(subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(timeout) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    assert codes == [0] * world_size, "\n".join(
        (folder / f"rank{rank}.log").read_text()[-3000:] for rank in range(world_size)
    )
    return json.loads((folder / "out.json").read_text())


def setup(job: dict):
    """(loaded model, backend, trainer, data) of a job."""
    import torch

    from workflow.data.division import MicroBatchLimits
    from workflow.data.plan import DataPlan
    from workflow.models.load import head_names
    from workflow.models.pruning import prune
    from workflow.runtime import ranks_from_environment
    from workflow.training.backend import Backend
    from workflow.training.ds_config import plan_backend
    from workflow.training.optim import make_optimizer, optimizer_groups, planned_groups
    from workflow.training.trainer import LoopSettings, Trainer

    ranks = ranks_from_environment()
    strategies = strategies_of(job)
    loaded, examples, objective = (score_parts if job.get("task") == "clf" else completion_parts)(job, strategies)
    if job.get("prune"):
        prune(loaded.model, 0.5)
    if not job.get("resume"):
        strategies.prepare_model(loaded.model, seed=0)
    strategies.plan(job.get("max_steps", 6))
    loaded = choose_trained(job, loaded)
    plan = plan_backend(
        deepspeed=job.get("deepspeed", "zero0"),
        precision=job.get("precision", "fp32"),
        optimizer=job.get("optimizer", "adamw"),
        world_size=ranks.world_size,
        max_grad_norm=1.0,
        micro_batch_size=job.get("micro", 4),
    )
    if job.get("checkpointing"):
        loaded.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    groups = planned_groups(
        loaded.model, lr=1e-3, weight_decay=0.01, head=head_names(loaded.model), by_layer=strategies.by_layer
    )
    groups = strategies.param_groups(groups, lr=1e-3)
    optimizer = make_optimizer(job.get("optimizer", "adamw"), optimizer_groups(loaded.model, groups))
    form = form_of(job, loaded)
    if objective.form is not None and hasattr(form, "head"):
        form.head.train_by(objective.form.loss, passes=objective.form.passes)
    backend = Backend(loaded.model, optimizer, plan, max_grad_norm=1.0, device=torch.device("cpu"), form=form)
    size = job.get("batch", 8) * job.get("accumulation", 1)
    settings = LoopSettings(
        max_steps=job.get("max_steps", 6),
        warmup_steps=2,
        lr_scheduler="linear",
        micro_batches=MicroBatchLimits(job.get("micro", 4)),
        seed=0,
        head_steps=job.get("head_steps", 0),
        skip_nonfinite=job.get("skip_nonfinite", 0),
    )
    order = DataPlan(len(examples.train), size, 0)
    trainer = Trainer(backend, objective, order, settings, ranks=ranks, strategies=strategies)
    return loaded, backend, trainer, examples


def strategies_of(job: dict):
    from workflow.config.strategy_settings import StrategiesSection
    from workflow.strategies.listing import compose

    return compose(StrategiesSection.model_validate(job.get("strategies", {})))


def choose_trained(job: dict, loaded):
    """Adapters, or some weights alone, where the job says so."""
    from dataclasses import replace

    from workflow.models.adapters import AdapterPlan, add_adapters
    from workflow.models.trainable import train_only
    from workflow.training.ds_config import torch_dtype

    if job.get("train_only"):
        train_only(loaded.model, job["train_only"], always=loaded.new_weights)
    if not job.get("lora"):
        return loaded
    targets, base = (job.get("targets", "all"),), job.get("lora_base", "full")
    plan = AdapterPlan(4, 8.0, job.get("lora_dropout", 0.0), targets, job["lora"], base)
    dtype = torch_dtype(job.get("precision", "fp32"), "cpu")
    adapters = add_adapters(loaded.model, plan, start=job["model"], new_weights=loaded.new_weights, seed=1, dtype=dtype)
    if job.get("resume"):
        adapters.load(Path(job["resume"]) / "adapter", loaded.model)
    return replace(loaded, adapters=adapters)


def form_of(job: dict, loaded):
    """What training calls, by the job's task; None for the model itself, on padded batches."""
    from workflow.models.ragged import ragged_form_of

    if not takes_ragged(job, loaded):
        return None
    return ragged_form_of(loaded.model, scores=job.get("task") == "clf")


def takes_ragged(job: dict, loaded) -> bool:
    from workflow.models.ragged import why_padded

    return not job.get("padded") and why_padded(loaded.model) is None


def completion_parts(job: dict, strategies):
    """(loaded model, examples, objective) of a seq2seq job."""
    import torch

    from workflow.data.encoders import LengthLimits, Seq2SeqEncoder
    from workflow.data.examples import SEQ2SEQ, load_examples
    from workflow.data.features import load_features
    from workflow.data.sources import find_source
    from workflow.models.load import load_seq2seq
    from workflow.paths import cache_dir
    from workflow.strategies.base import TOKENS
    from workflow.training.flops import dimensions_of
    from workflow.training.objectives import CompletionLoss, token_loss

    loaded = load_seq2seq(job["model"], dropout=job.get("dropout", 0.0), as_stored=True)
    examples = load_examples(find_source("toy", Path(job["mount"])), SEQ2SEQ, cache_dir())
    features = load_features(examples, "train", Seq2SeqEncoder(loaded.tokenizer, LengthLimits(64, 64)), cache_dir())
    config = loaded.model.config
    return (
        loaded,
        examples,
        CompletionLoss(
            config,
            features,
            pad_id=0,
            device=torch.device("cpu"),
            dimensions=dimensions_of(config),
            is_ragged=takes_ragged(job, loaded),
            form=strategies.loss_form(token_loss, TOKENS),
        ),
    )


def score_parts(job: dict, strategies):
    """(loaded model, examples, objective) of a clf job."""
    import torch

    from workflow.data.examples import ScoredRows, load_examples
    from workflow.data.features import load_features
    from workflow.data.scoring import Scoring
    from workflow.data.sources import find_source
    from workflow.models.classifier import load_classifier
    from workflow.paths import cache_dir
    from workflow.recipe.scorers import score_encoder
    from workflow.training.flops import dimensions_of
    from workflow.training.objectives import ScoreLoss, score_loss

    scoring = Scoring(
        problem=job.get("problem", "binary"), labels=tuple(job.get("labels", ("no", "yes"))), max_length=64
    )
    loaded = load_classifier(
        job["model"],
        problem=scoring.problem,
        labels=scoring.labels,
        dropout=job.get("dropout", 0.0),
        seed=1,
        as_stored=True,
    )
    source = find_source(job.get("data", "scored"), Path(job["mount"]))
    examples = load_examples(source, ScoredRows(scoring.texts, scoring.targets()), cache_dir())
    encoder = score_encoder(loaded, scoring, 64, with_targets=True)
    features = load_features(examples, "train", encoder, cache_dir())
    objective = ScoreLoss(
        loaded,
        features,
        pad_id=loaded.tokenizer.pad_token_id,
        device=torch.device("cpu"),
        dimensions=dimensions_of(loaded.model.config),
        is_ragged=takes_ragged(job, loaded),
        form=strategies.loss_form(score_loss(scoring.problem), scoring.problem),
    )
    return loaded, examples, objective


def train(job: dict) -> dict:
    """Losses and gradient norms of a few updates, continued from or saved to a checkpoint where the job says so."""
    from workflow.models.load import guarded_weights
    from workflow.models.save import SHARD_BYTES, write_model
    from workflow.recipe.averages import kept, restore
    from workflow.training.checkpoint import TrainState, read_state
    from workflow.training.checkpoint_reader import CheckpointReader
    from workflow.training.saving import Saver

    loaded, backend, trainer, _ = setup(job)
    state = TrainState()
    if job.get("resume"):
        state = read_state(Path(job["resume"]))
        backend.load_optimizer_state(
            CheckpointReader(Path(job["resume"])),
            num_steps=state.step,
            empty_loss=lambda: trainer.objective.loss_sum(backend.wrapped, ()),
        )
        restore(trainer.strategies, trainer.masters, Path(job["resume"]), step=state.step)
    seen = []

    def stop(state, update):
        seen.append((update.loss, update.grad_norm))
        if job.get("save") and update.step == job["save_at"]:
            Saver(backend).checkpoint(
                Path(job["save"]),
                state=state,
                more=kept(trainer.strategies, trainer.masters),
                write_model=lambda folder, weights: write_model(
                    folder,
                    loaded.model,
                    loaded.tokenizer,
                    weights,
                    max_new_tokens=9,
                    shard_bytes=job.get("shard_bytes", SHARD_BYTES),
                    adapters=loaded.adapters,
                ),
            )

    trainer.run(state, [stop])
    found = {"losses": [loss for loss, _ in seen], "norms": [norm for _, norm in seen]}
    with backend.gathered(list(loaded.model.parameters())):
        weights = guarded_weights(loaded.model)
        found["head"] = weights["head"].detach().float().flatten()[:8].tolist()
        found["embeddings"] = weights["embeddings"].detach().float().flatten()[::89].tolist()
        found["own_head"] = weights["head"] is not weights["embeddings"]
    if job.get("strategies"):
        found |= of_strategies(trainer, loaded.adapters)
    found["state_names"] = sorted({key.rpartition("/")[0] for key, _ in backend.optimizer_state()})
    backend.destroy()
    return found


def of_strategies(trainer, adapters) -> dict:
    """Norms of all weights and averages, how many zeros there are, and whether an average leaves all as it was."""
    import torch

    from workflow.training.merging import adapters_merged

    backend, masters, strategies = trainer.backend, trainer.masters, trainer.strategies

    def norms(weights):
        return {name: float(weight.detach().double().norm()) for name, weight in weights}

    found = {"weights": norms(backend.weights()), "figures": strategies.figures(masters)}
    found["zeros"] = {name: int((weight == 0).sum()) for name, weight in backend.weights()}
    found["averages"] = {one.name: norms(masters.weights(one.average())) for one in strategies.averages()}
    found["average_losses"], found["merged_losses"] = {}, {}
    rows = [0, 1, 2] if trainer.ranks.is_first else []
    backend.module.eval()

    def loss() -> float:
        return float(trainer.objective.loss_sum(backend.wrapped, rows).detach())

    before = [weight.clone() for _, weight in backend.weights()]
    plain = loss()
    for one in strategies.averages():
        with masters.replaced(one.average()):
            found["average_losses"][one.name] = loss()
            with adapters_merged(backend, adapters):
                found["merged_losses"][one.name] = loss()
    same = all(map(torch.equal, before, (weight for _, weight in backend.weights())))
    found["untouched"] = same and plain == loss()
    return found


class CountedMemory:
    """Takes 1000 bytes and ten for each token of a pass; rank 1 has less room."""

    def __init__(self, objective, rank: int) -> None:
        self.objective, self.rank, self.tokens = objective, rank, []
        inner = objective.loss_sum

        def loss_sum(model, rows, **more):
            lengths = objective.source_lengths + objective.target_lengths
            self.tokens.append(int(lengths[list(rows)].sum()))
            return inner(model, rows, **more)

        objective.loss_sum = loss_sum

    def peak(self, run) -> int:
        del self.tokens[:]
        run()
        return 1000 + 10 * sum(self.tokens)

    def room(self) -> int:
        return 80_000 if self.rank else 90_000


def trial(job: dict) -> dict:
    """Looks for the room of a pass, then trains; the losses and what was found."""
    from workflow.data.division import MicroBatchLimits
    from workflow.training.budget import find_tokens
    from workflow.training.checkpoint import TrainState

    _, backend, trainer, _ = setup(job)
    found = {}
    if job.get("tries"):
        meter = CountedMemory(trainer.objective, trainer.ranks.rank)
        found["tokens"] = find_tokens(backend, trainer.objective, meter, MicroBatchLimits())
        del trainer.objective.loss_sum
    losses: list[float] = []
    trainer.run(TrainState(), [lambda _, update: losses.append(update.loss)])
    backend.destroy()
    return {"losses": losses, **found}


def allocate(job: dict) -> dict:
    """Three updates of a model from scratch on next to no tokens, counting bytes: what states take, but for activations."""
    import torch
    import transformers

    from tests.training.allocations import Allocations
    from workflow.data.packing import Ragged
    from workflow.models.ragged_training import RaggedT5
    from workflow.runtime import ranks_from_environment
    from workflow.training.backend import Backend
    from workflow.training.ds_config import plan_backend
    from workflow.training.optim import make_optimizer, parameter_groups

    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**job["config"], decoder_start_token_id=0))
    plan = plan_backend(
        deepspeed=job["deepspeed"],
        precision=job["precision"],
        optimizer="adamw",
        world_size=ranks_from_environment().world_size,
        max_grad_norm=1.0,
        micro_batch_size=1,
    )
    optimizer = make_optimizer("adamw", parameter_groups(model, lr=1e-3, weight_decay=0.0))
    pack = Ragged(torch.tensor([5, 6, 1]), (3,))
    with Allocations() as allocations:
        for parameter in model.parameters():
            allocations.see(parameter.data)
        backend = Backend(model, optimizer, plan, max_grad_norm=1.0, device=torch.device("cpu"), form=RaggedT5(model))
        for _ in range(3):
            allocations.reset()
            backend.backward(backend.wrapped(pack, pack), is_last=False)
            held, in_backward = allocations.now, allocations.peak
            backend.backward(backend.wrapped(pack, pack), is_last=True)
            backend.step(1.0)
    backend.destroy()
    return {"held": held, "in_backward": in_backward, "peak": allocations.peak}


def nonfinite(job: dict) -> dict:
    """Poisons one weight after two steps; every rank must stop with the same clear error."""
    import torch

    from workflow.errors import BackendError
    from workflow.training.checkpoint import TrainState

    loaded, backend, trainer, _ = setup(job)

    def poison(state, update):
        if update.step == 2:
            import deepspeed

            weight = loaded.model.lm_head.weight
            sharded = hasattr(weight, "ds_id")
            with (
                deepspeed.zero.GatheredParameters([weight], modifier_rank=0) if sharded else nullcontext(),
                torch.no_grad(),
            ):
                weight.data[:] = float("nan")

    try:
        trainer.run(TrainState(), [poison])
    except BackendError as error:
        return {"error": str(error)}
    finally:
        backend.destroy()
    return {"error": None}


def poisoned(job: dict) -> dict:
    """Trains with one update whose loss or gradient is not finite; losses, and the state before and after that update.

    Without `poison`, the same update is not made at all.
    """
    from workflow.training.checkpoint import TrainState

    _, backend, trainer, _ = setup(job)
    inner, bad = trainer.objective.loss_sum, job["step"]
    poison = {"loss": lambda loss: loss * float("nan"), "gradient": lambda loss: loss + (loss * 0).sqrt()}
    state, found, losses = TrainState(), {}, []

    def snapshot(name: str) -> None:
        tensors = {**dict(backend.weights()), **dict(backend.optimizer_state())}
        found[name] = {
            key: zlib.crc32(tensor.detach().float().cpu().numpy().tobytes()) for key, tensor in tensors.items()
        }

    def loss_sum(model, rows, **more):
        loss = inner(model, rows, **more)
        if state.step + 1 == bad and job.get("poison") and (trainer.ranks.rank == trainer.ranks.world_size - 1):
            return poison[job["poison"]](loss)
        return loss

    trainer.objective.loss_sum = loss_sum

    def after(state, update):
        losses.append(None if update.skipped else update.loss)
        if update.step == bad - 1:
            snapshot("before")
            if not job.get("poison"):
                state.step += 1
        if update.step == bad:
            snapshot("after")
            found["told"] = str(update.skipped)

    trainer.run(state, [after])
    snapshot("end")
    backend.destroy()
    return {"losses": losses, "skipped": state.skipped, **found}


def evaluate(job: dict) -> dict:
    """Generates for the eval rows on all ranks, under the job's ZeRO stage."""
    from unittest import mock

    import torch

    from workflow.data.encoders import LengthLimits, Seq2SeqEncoder
    from workflow.data.features import load_features
    from workflow.evaluation.evaluator import TextEvaluator
    from workflow.inference.engine import T5Engine
    from workflow.inference.interface import EngineLimits
    from workflow.inference.sampling import SamplingParams
    from workflow.models.verbalizers import no_yes_tokens
    from workflow.paths import cache_dir
    from workflow.training import merging
    from workflow.training.merging import adapters_merged
    from workflow.training.objectives import CompletionLoss

    loaded, backend, trainer, examples = setup(job)
    model = loaded.model
    engine = T5Engine(model, loaded.tokenizer, limits=EngineLimits(max_rows=4), together=backend.together())

    def row_losses(rows):
        model.eval()
        return losses.row_losses(backend.wrapped.module, rows)

    features = load_features(examples, "eval", Seq2SeqEncoder(loaded.tokenizer, LengthLimits(64, 64)), cache_dir())
    losses = CompletionLoss(
        model.config, features, pad_id=0, device=torch.device("cpu"), is_ragged=takes_ragged(job, loaded)
    )
    params = SamplingParams(max_new_tokens=6, temperature=job.get("temperature", 0.0), n=job.get("n", 1))
    evaluator = TextEvaluator(
        engine,
        row_losses,
        examples.eval,
        features,
        params,
        ranks=trainer.ranks,
        batch_size=2,
        label_tokens=no_yes_tokens(loaded.tokenizer),
        seed=0,
        slice_by="id",
    )
    trainer.update(1)
    before = [weight.clone() for _, weight in backend.weights()]
    limited = (
        nullcontext() if job.get("room") is None else mock.patch.object(merging, "_room", return_value=job["room"])
    )
    with limited, adapters_merged(backend, loaded.adapters):
        found = evaluator.evaluate()
    untouched = all(map(torch.equal, before, (weight for _, weight in backend.weights())))
    after = trainer.update(2).loss
    backend.destroy()
    return {
        "texts": [[generation.text for generation in result.generations] for result in found.results],
        "scores": [result.scores for result in found.results],
        "eval_loss": found.metrics["eval_loss"].value if found.metrics else None,
        "slices": len(found.slices),
        "untouched": untouched,
        "after": after,
    }


def memory_of_loading(job: dict) -> dict:
    """Bytes of their own that the ranks take to load, shard and continue; all of them in lists, by rank."""
    from unittest import mock

    import deepspeed
    import torch.distributed as dist

    from workflow.training.checkpoint_reader import CheckpointReader

    _, warm, _, _ = setup({**job, "model": job["warm"]})  # what is imported and built once does not count
    warm.destroy()
    start, real = Peak(), deepspeed.initialize
    found: dict[str, object] = {}

    def initialize(**arguments):
        found["whole"] = [name for name, weight in arguments["model"].named_parameters() if weight.numel()]
        found["until_sharded"] = start.stop()
        return real(**arguments)

    with mock.patch.object(deepspeed, "initialize", initialize):
        _, backend, trainer, _ = setup(job)
    if job.get("resume"):
        peaks: list[Peak] = []

        class Watched(CheckpointReader):
            """Begins to watch at the first tensor: the state is there by then, made by an update that took its usual memory."""

            def weight(self, name):
                if not peaks:
                    peaks.append(Peak())
                return super().weight(name)

        backend.load_optimizer_state(
            Watched(Path(job["resume"])),
            num_steps=1,
            empty_loss=lambda: trainer.objective.loss_sum(backend.wrapped, ()),
        )
        found["to_continue"] = peaks[0].stop()
    backend.destroy()
    everyone: list = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, found)
    return {key: [of_rank[key] for of_rank in everyone] for key in found}


def main() -> None:
    from workflow.models.load import quiet_transformers
    from workflow.runtime import exit_process, join_ranks, leave_ranks, ranks_from_environment

    quiet_transformers()
    ranks = ranks_from_environment()
    join_ranks(ranks, device="cpu")
    jobs = json.loads(Path(sys.argv[1]).read_text())
    found = [
        {
            "train": train,
            "nonfinite": nonfinite,
            "evaluate": evaluate,
            "trial": trial,
            "allocate": allocate,
            "load": memory_of_loading,
            "poisoned": poisoned,
        }[job.get("do", "train")](job)
        for job in jobs
    ]
    if ranks.is_first:
        Path(sys.argv[2]).write_text(json.dumps(found))
    leave_ranks()
    exit_process(0)


if __name__ == "__main__":
    main()
