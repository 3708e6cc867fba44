"""Record what the target says, with what else it held likely: the draft's training text.

    python scripts/draft/generate.py [--out results/draft] [--minutes 40]
    python scripts/draft/generate.py --validation [--per-class 24]

In waves, a shard each: shared prompts that are not held back, templates, and questions that the
target makes up itself; answers greedy or at a temperature from 0.7 to 1, some with a second turn,
some on past their end, as benchmarks let them go. With each token go the log-probabilities of the
32 likeliest. A run that is interrupted goes on where it stopped; shards that are there stay.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from asks import CLASSES, FOLLOW_UPS, Prompt, from_template, shared_prompts
from shards import TOP, Answered, write_shard

from giusto.engine.launch import adopt_environment

#: Answers of a wave by where the prompt is from, and questions made up for it.
SHARED, TEMPLATES, MADE_UP = 64, 64, 80
#: Of the shared prompts of a wave, how many are of each class.
BY_CLASS = (20, 16, 16, 12)
TOKENS, QUESTION_TOKENS, SECOND_TOKENS = 192, 64, 128
VALIDATION_TOKENS = 128
#: One answer in so many goes on past its end, one in so many gets a second turn.
PAST_END, SECOND = 7, 5


@dataclass
class Job:
    """One answer to be made: `kind` is its prompt's class."""

    kind: str
    prompt: list[int]
    temperature: float = 0.0
    max_tokens: int = TOKENS
    ignore_eos: bool = False
    messages: list[dict[str, str]] = field(default_factory=list)
    answer: Answered | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", help="a folder or hub id; the default model")
    parser.add_argument("--out", type=Path, default=Path("results/draft"))
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--validation", action="store_true", help="held-back prompts, greedy")
    parser.add_argument("--per-class", type=int, default=24, help="validation prompts")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64, help="answers at once")
    given = parser.parse_args()
    adopt_environment()
    given.out.mkdir(parents=True, exist_ok=True)
    target = Target(given.target, given.batch)
    if given.validation:
        validation(target, given)
    else:
        waves(target, given)


def waves(target: Target, given: argparse.Namespace) -> None:
    train, _, _ = shared_prompts()
    ends_at = target.now() + 60 * given.minutes
    texts: list[str] = []
    number = 0
    while target.now() < ends_at:
        path = given.out / f"train-{number:03d}.npz"
        if not path.exists():
            jobs = wave(target, train, number, given.seed, texts)
            write_shard(path, [job.answer for job in jobs if job.answer is not None])
            tokens = sum(len(job.answer.answer) for job in jobs if job.answer is not None)
            target.say(f"{path.name}: {len(jobs)} answers, {tokens} tokens, {target.rate():.0f}/s")
        number += 1


def wave(
    target: Target, train: list[Prompt], number: int, seed: int, texts: list[str]
) -> list[Job]:
    """Answers to some of everything; `texts` gets those that may be summarised later."""
    draw = Random(f"{seed} {number}")
    jobs = [target.job(prompt, draw) for prompt in picked(train, number, seed)]
    jobs += [target.job(from_template(draw, texts), draw) for _ in range(TEMPLATES)]
    jobs += [target.job(Prompt("chat", (text,)), draw) for text in target.questions(draw, MADE_UP)]
    target.answer(jobs)
    seconds = []
    for job in jobs:
        answer = job.answer
        assert answer is not None
        text = target.text(answer.answer)
        if answer.is_whole and len(answer.answer) >= 40 and draw.random() < 0.2:
            texts.append(text)
        if answer.is_whole and job.messages and draw.randrange(SECOND) == 0:
            follow_up = {"role": "user", "content": draw.choice(FOLLOW_UPS)}
            said = {"role": "assistant", "content": text}
            messages = [*job.messages, said, follow_up]
            seconds.append(target.job_of(job.kind, messages, draw, SECOND_TOKENS))
    target.answer(seconds)
    return jobs + seconds


def picked(train: list[Prompt], number: int, seed: int) -> list[Prompt]:
    """The shared prompts of a wave: class by class, round and round in a shuffled order."""
    found = []
    for kind, count in zip(CLASSES, BY_CLASS, strict=True):
        mine = [prompt for prompt in train if prompt.kind == kind]
        Random(f"{seed} {kind}").shuffle(mine)
        found += [mine[place % len(mine)] for place in range(number * count, (number + 1) * count)]
    return found


def validation(target: Target, given: argparse.Namespace) -> None:
    _, held_back, benched = shared_prompts()
    for name, prompts in (("validation", held_back), ("benched", benched)):
        jobs = []
        for kind in CLASSES:
            mine = [prompt for prompt in prompts if prompt.kind == kind][: given.per_class]
            for prompt in mine:
                messages = [{"role": "user", "content": prompt.turns[0]}]
                jobs.append(Job(kind, target.render(messages), 0.0, VALIDATION_TOKENS))
        target.answer(jobs, keep=None)
        answers = [job.answer for job in jobs if job.answer is not None]
        write_shard(given.out / f"{name}.npz", answers)
        target.say(f"{name}: {len(answers)} answers")


class Target:
    """The target on the project's own engine, with a sampler that records."""

    def __init__(self, model: str | None, batch: int) -> None:
        from recording import Recorder  # noqa: PLC0415
        from rich.console import Console  # noqa: PLC0415  (after the environment is set)

        from giusto import build  # noqa: PLC0415
        from giusto.core.clock import WallClock  # noqa: PLC0415
        from giusto.engine.settings import EngineSettings  # noqa: PLC0415

        settings = EngineSettings(
            model=model,
            scheduling_policy="fcfs",
            kv_cache_memory=3 << 29,
            seed=0,
            max_num_seqs=batch,
        )
        self.engine, _ = build.engine(settings, WallClock())
        runner = self.engine.runner
        runner.sampler = self.recorder = Recorder(
            runner.decoder.config.vocab_size, runner.sampler.eos_token_ids, TOP
        )
        self.tokenizer = runner.tokenizer
        head = self.tokenizer.render_chat([{"role": "user", "content": "\x00"}], False)
        self.before_question = self.tokenizer.encode(head.partition("\x00")[0], False)
        self.say = Console().print
        self._num_asked = self._num_made = 0
        self._began = self.now()

    def now(self) -> float:
        return self.engine.clock.now()

    def rate(self) -> float:
        return self._num_made / (self.now() - self._began)

    def render(self, messages: list[dict[str, str]]) -> list[int]:
        return self.tokenizer.encode(self.tokenizer.render_chat(messages, True), False)

    def text(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(list(tokens)).strip()

    def job(self, prompt: Prompt, draw: Random) -> Job:
        return self.job_of(prompt.kind, [{"role": "user", "content": prompt.turns[0]}], draw)

    def job_of(
        self, kind: str, messages: list[dict[str, str]], draw: Random, max_tokens: int = TOKENS
    ) -> Job:
        temperature = draw.choice((0.0, 0.0, 0.7, 1.0))
        goes_on = temperature == 0 and draw.randrange(PAST_END) == 0
        return Job(kind, self.render(messages), temperature, max_tokens, goes_on, messages)

    def questions(self, draw: Random, count: int) -> list[str]:
        """What the target would ask itself."""
        jobs = [
            Job("chat", self.before_question, draw.choice((0.8, 1.0)), QUESTION_TOKENS)
            for _ in range(count)
        ]
        self.answer(jobs, keep=0)
        found = (job.answer for job in jobs if job.answer is not None and job.answer.is_whole)
        texts = (self.text(answer.answer) for answer in found)
        return [text for text in texts if len(text) > 15]

    def answer(self, jobs: Sequence[Job], keep: int | None = 320) -> None:
        """Make all answers; of prompts the last `keep` tokens are noted, None for all."""
        from giusto.core.request import SamplingParams, Submission  # noqa: PLC0415

        engine = self.engine
        names = {}
        for job in jobs:
            name = str(self._num_asked)
            self._num_asked += 1
            names[name] = job
            sampling = SamplingParams(
                max_tokens=job.max_tokens,
                temperature=job.temperature,
                ignore_eos=job.ignore_eos,
                seed=int(name),
            )
            engine.submit(
                Submission(
                    name, self.now(), len(job.prompt), prompt_ids=job.prompt, sampling=sampling
                )
            )
        while engine.scheduler.has_work:
            engine.step()
        for name, job in names.items():
            made = self.recorder.take(name)
            self._num_made += len(made.tokens)
            prompt = job.prompt if keep is None else job.prompt[max(0, len(job.prompt) - keep) :]
            is_whole = made.tokens[-1] in self.recorder.eos_token_ids
            job.answer = Answered(
                job.kind, prompt, made.tokens, made.top_ids, made.top_logprobs, is_whole
            )


if __name__ == "__main__":
    main()
