"""Stage lists: several runs of ``train``, each from where the one before it has ended.

    teacher: digits                  # what all stages share: any options of train
    stages:
      - train: dmd2                  # the method, then what is this stage's own
        max_steps: 900
        method: {gan_weight: 0}
      - train: fdiv
        max_steps: 300

A stage is an ordinary run, in OUTPUT/1-dmd2, OUTPUT/2-fdiv and so on. From the second on its init
is the stage before, and init_critic too where both have a critic that learns in the same way; a
stage may give others, or none (""). OUTPUT/student is a link to the last one's.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState

from ..config import Settings, as_arguments
from ..errors import UserError
from ..files import differences, whole
from ..fit import FitConfig
from ..methods import METHODS
from ..parser import nearest, read_yaml
from .options import DistilOptions, read_settings
from .run import distil
from .staged import check_stage, continued

PROGRAM = "stepdistill train stages"
USAGE = f"{PROGRAM} --config FILE --output DIR [options of train, for all stages]"
FINISHED = "finished.json"  # in a stage's folder: what it was asked for
SHOWN = ("student", "lora")  # what OUTPUT has links to


@dataclass(frozen=True)
class Stage:
    """``name`` is its method; ``arguments`` are those of ``train NAME``, and ``settings`` these."""

    number: int
    name: str
    arguments: tuple[str, ...]
    settings: Settings

    @property
    def called(self) -> str:
        """For messages."""
        return f"stage {self.number} ({self.name})"

    @property
    def folder(self) -> Path:
        """Of its run."""
        return Path(self.settings.get(DistilOptions).output)

    @property
    def is_dry(self) -> bool:
        """Whether it is to be tried alone."""
        return self.settings.get(DistilOptions).dry_run

    def asked(self) -> dict[str, Any]:
        """What its student depends on, in JSON form."""
        config = self.settings.get(FitConfig)
        free = asdict(config).keys() - config.trajectory().keys() - {"max_steps"}
        kept = {k: v for k, v in self.settings.resolved.items() if k not in free}
        found: dict[str, Any] = json.loads(json.dumps(kept, default=str))
        return found

    def is_finished(self) -> bool:
        """Whether it was; UserError if it was asked for something else then."""
        told = self.folder / FINISHED
        if self.is_dry or not told.exists():
            return False
        then, now = json.loads(told.read_text()), self.asked()
        if then != now:
            raise UserError(
                f"{self.called} is finished in {self.folder}, with other settings "
                f"({differences(then, now)}): give the same settings, or another --output"
            )
        return True

    def finish(self) -> None:
        """Have it left as it is from now on."""
        with whole(self.folder / FINISHED) as aside:
            aside.write_text(json.dumps(self.asked(), indent=1) + "\n")


def run_stages(arguments: Sequence[str] | None = None) -> bool:
    """All stages that are not finished, in turn; False if one was interrupted.

    UserError, before the first of them begins, for a list or a stage that cannot be.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(given):
        print(f"usage: {USAGE}\n\n{__doc__}")
        return True
    stages = read_stages(given)
    left = [stage for stage in stages if not stage.is_finished()]
    for stage in left:
        with _named(stage.called):
            check_stage(stage.name, stage.settings)
    last = stages[-1]
    if not last.is_dry:
        _check_links(last.folder.parent)
    main = PartialState().is_main_process
    for stage in stages:
        if main:
            state = "" if stage in left else ", which is finished"
            print(f"{stage.called}: {stage.folder}{state}", file=sys.stderr)
        if stage not in left:
            continue
        if distil(stage.name, stage.arguments).interrupted:
            return False
        gc.collect()  # roles and their views refer to one another, and the next ones need room
        if main and not stage.is_dry:
            stage.finish()
        PartialState().wait_for_everyone()
    if main and not last.is_dry:
        _link(last.folder)
    return True


def read_stages(arguments: Sequence[str]) -> list[Stage]:
    """The stages of the file that ``arguments`` name; those beside it win in each of them.

    UserError for what is wrong in the file or a stage, unknown methods and options among it.
    """
    file, beside = _config_file(arguments)
    shared = read_yaml(file)
    listed = shared.pop("stages", None)
    if not isinstance(listed, list) or not listed or not all(isinstance(x, dict) for x in listed):
        raise UserError(f"{file} needs stages, a list with `train: METHOD` and options in each")
    stages: list[Stage] = []
    for number, stage in enumerate(listed, 1):
        name, own = stage.get("train"), {k: v for k, v in stage.items() if k != "train"}
        with _named(f"stage {number}{f' ({name})' if name else ''} of {file}"):
            _check_method(name)
            options = {**_flat(shared), **_flat(own)}
            given = [*as_arguments(options), *beside]
            settings = read_settings(name, given, PROGRAM)
            more = {"output": f"{settings.get(DistilOptions).output}/{number}-{name}"}
            if stages:
                before = stages[-1]
                more |= continued(before.name, before.settings, name, settings, own)
            if number < len(listed):
                more["push_to_hub"] = own.get("push_to_hub", "")
            given += as_arguments(more)
            stages.append(Stage(number, name, tuple(given), read_settings(name, given, PROGRAM)))
    return stages


def _config_file(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """(the file of --config, the other arguments)."""
    files, rest, left = [], [], iter(arguments)
    for argument in left:
        name, equals, value = argument.partition("=")
        if name == "--config":
            files.append(value if equals else next(left, ""))
        else:
            rest.append(argument)
    if len(files) != 1 or not files[0]:
        raise UserError(f"{PROGRAM} needs --config once, with the list of stages: {USAGE}")
    return files[0], rest


def _check_method(name: Any) -> None:
    if name not in METHODS:
        near = nearest(str(name), METHODS)
        hint = f" Did you mean {near}?" if near else ""
        said = f"there is no method {name}.{hint}" if name else "it needs train, a method."
        raise UserError(f"{said} The methods are: {', '.join(METHODS)}")


def _flat(options: Mapping[Any, Any]) -> dict[str, Any]:
    """With dotted names."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{member}": own for member, own in value.items()}
        else:
            flat[str(name)] = value
    return flat


@contextmanager
def _named(place: str) -> Iterator[None]:
    """Say where a mistake is."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{place}: {error}") from error


def _check_links(output: Path) -> None:
    for name in SHOWN:
        link = output / name
        if link.exists() and not link.is_symlink():
            raise UserError(f"{link} is in the way of the last stage's: give another --output")


def _link(folder: Path) -> None:
    """OUTPUT's links to what the last stage has exported."""
    for name in SHOWN:
        link, aside = folder.parent / name, folder.parent / f".{name}.partial"
        link.unlink(missing_ok=True)
        if (folder / name).exists():
            aside.unlink(missing_ok=True)
            aside.symlink_to(f"{folder.name}/{name}")
            aside.replace(link)
            print(f"{name}: {link}")
